"""A generator behind TRL's `rollout_func`: whose completions, by which seeds, up to which end, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from ppo_case import even_letters, several_end_tokens
from rollouts_case import ROWS, Replaying, grpo_trainer, rollout
from self_training_case import trainer as raft_trainer
from tiny import byte_tokenizer, tiny_llama, tokenizer_with_options
from transformers import TrainerCallback
from two_processes import run_in_two

from trl_ext import EndpointGenerator, FileGenerator, TransformersGenerator, VLLMGenerator, evaluate, vllm_rollouts
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.rollouts import policy_of, sampling_of


def generated(samples) -> list[list[int]]:
    return [sample["completion_ids"] for _, part in samples for sample in part]


def test_one_completion_per_entry_by_the_policy_itself(tmp_path):
    """Row r of seed s is what the generator gives to row r of seed s; equal prompts are different rows."""
    trainer = grpo_trainer(tmp_path, TransformersGenerator())
    ids = rollout(trainer)["completion_ids"]
    asked = Replaying()
    other = grpo_trainer(tmp_path / "asked", asked)
    assert rollout(other)["logprobs"] is None
    ((sampling, part),) = asked.asked
    assert (part.rows, part.prompts, sampling.num_generations) == ((0, 1, 2, 3), tuple(ROWS), 1)
    policy = Policy(trainer.model, trainer.processing_class)
    assert ids == generated(TransformersGenerator().generate([Part(0, part.rows, part.prompts)], sampling, policy))
    assert len({tuple(row) for row in ids}) == 4
    assert asked.policies[0].model is other.model  # no copy of it


def test_every_rollout_has_seeds_of_its_own(tmp_path):
    """Two rollouts within one optimizer step too; evaluation moves none of training's."""
    options = {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 2}
    plain, watched = Replaying(), Replaying()
    grpo_trainer(tmp_path / "plain", plain, **options).train()
    held_out = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    evaluated = grpo_trainer(
        tmp_path / "watched", watched, **options, **held_out, eval_dataset=Dataset.from_dict({"prompt": ["a", "b"]})
    )
    evaluated.train()
    assert len(plain.seeds()) == len(set(plain.seeds())) == 6
    assert len(watched.seeds()) == len(set(watched.seeds())) == 6 + 3 * 2
    assert [seed for seed in watched.seeds() if seed in plain.seeds()] == plain.seeds()


def test_the_runs_seed_decides(tmp_path):
    one, same, other = Replaying(), Replaying(), Replaying()
    for generator, seed in ((one, 1), (same, 1), (other, 2)):
        rollout(grpo_trainer(tmp_path / str(seed), generator, seed=seed))
    assert one.seeds() == same.seeds() != other.seeds()


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 2


@pytest.mark.parametrize("make", [TransformersGenerator, Replaying])
def test_a_resumed_run_samples_on(tmp_path, make):
    save = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    whole = grpo_trainer(tmp_path / "whole", make(), **save)
    whole.train()
    grpo_trainer(tmp_path / "stopped", make(), callbacks=[StopAt()], **save).train()
    resumed = grpo_trainer(tmp_path / "stopped", generator := make(), **save)
    resumed.train(resume_from_checkpoint=True)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    if make is Replaying:
        assert generator.seeds() == whole.rollout_func.generator.seeds()[2:]


class Interrupts(TrainerCallback):
    """Ctrl-C, once, in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


def test_the_same_trainer_goes_on_as_a_new_one_would(tmp_path):
    """Begun anew after Ctrl-C, or trained once more: no count is left of what was before."""
    steps = {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 2}
    save = steps | {"save_strategy": "steps", "save_steps": 1}
    grpo_trainer(tmp_path / "whole", whole := Replaying(), **save).train()
    one = grpo_trainer(tmp_path / "same", asked := Replaying(), callbacks=[Interrupts(1)], **save)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    sampled = asked.seeds()
    assert sampled == whole.seeds()[: len(sampled)] and len(sampled) in (3, 4)
    one.train(resume_from_checkpoint=True)
    assert asked.seeds()[len(sampled) :] == whole.seeds()[2:]
    one.train()
    assert asked.seeds()[-6:] == whole.seeds()


def test_two_trainers_one_after_the_other_count_for_themselves(tmp_path):
    other = grpo_trainer(tmp_path / "other", asked := Replaying())
    rollouts = other.rollout_func
    one = grpo_trainer(tmp_path / "one", None)
    one.rollout_func = rollouts
    for trainer in (one, other, other):
        rollout(trainer)
    assert asked.seeds()[0] == asked.seeds()[1] != asked.seeds()[2]


def test_each_evaluation_of_the_same_weights_has_the_same_seeds(tmp_path):
    held_out = Dataset.from_dict({"prompt": ["a", "b"]})
    one = grpo_trainer(tmp_path, asked := Replaying(), per_device_eval_batch_size=2, eval_dataset=held_out)
    for _ in range(2):
        one.evaluate()
    assert asked.seeds()[:2] == asked.seeds()[2:] and len(set(asked.seeds())) == 2


def test_it_samples_by_the_configs_options(tmp_path):
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3}
    rollout(grpo_trainer(tmp_path, generator := Replaying(), max_completion_length=7, **options))
    sampling = generator.asked[0][0]
    assert sampling == Sampling(1, 7, **options, seed=sampling.seed)


@several_end_tokens
def test_completions_end_where_the_trainer_says(tmp_path):
    trainer = grpo_trainer(tmp_path, TransformersGenerator(), max_completion_length=12)
    trainer.eos_token_ids = [1, *range(40, 120)]  # most completions meet one
    ids = rollout(trainer)["completion_ids"]
    ends = set(trainer.eos_token_ids)
    assert any(row[-1] in ends for row in ids) and not any(ends & set(row[:-1]) for row in ids)
    goes_on = grpo_trainer(tmp_path / "goes on", Replaying(completion_ids=[5, 6, 1, 7], log_probs=[-1.0] * 4))
    assert rollout(goes_on)["completion_ids"] == [[5, 6, 1]] * 4
    assert rollout(goes_on)["logprobs"] == [[-1.0] * 3] * 4


def test_prompts_are_read_as_trl_reads_them(tmp_path):
    chat = [[{"role": "user", "content": text}] for text in ROWS]
    for prompts, kwargs in ((ROWS, None), (chat, {"shout": True})):
        trainer = grpo_trainer(tmp_path, Replaying(), chat_template_kwargs=kwargs)
        trainer.processing_class = trainer._tokenizer = tokenizer_with_options()
        assert rollout(trainer, prompts)["prompt_ids"] == trainer._tokenize_prompts(prompts)[0]


def test_their_log_probabilities_reach_the_trainer(tmp_path):
    trainer = grpo_trainer(tmp_path, Replaying(log_probs=[-0.5, -1.0, None, -2.0, -2.5]))
    trainer.model.train()
    made = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in ROWS])
    expected = torch.tensor([-0.5, -1.0, float("nan"), -2.0, -2.5]).expand(4, 5)
    torch.testing.assert_close(made["sampling_per_token_logps"], expected, equal_nan=True)


def test_a_row_without_log_probabilities_leaves_the_others_theirs(tmp_path):
    def all_but_one(samples):
        return [sample | {"log_probs": None if sample["row"] == 2 else [-1.0] * 5} for sample in samples]

    rows = rollout(grpo_trainer(tmp_path, Gives(all_but_one)))["logprobs"]
    assert [rows[i] for i in (0, 1, 3)] == [[-1.0] * 5] * 3
    assert len(rows[2]) == 5 and all(math.isnan(number) for number in rows[2])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_learns(tmp_path, seed):
    trainer = grpo_trainer(
        tmp_path, TransformersGenerator(), seed=seed, learning_rate=2e-2, max_steps=30, max_completion_length=8,
        per_device_train_batch_size=32, num_generations=8,
    )  # fmt: skip
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[:3]) / 3 < 3 and sum(rewards[-3:]) / 3 > 6  # of 8 characters


# Bad input


class Gives(Replaying):
    """What `make` makes of the samples that there should be."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def generate(self, parts, sampling, policy):
        for part, samples in super().generate(parts, sampling, policy):
            yield part, self.make(samples)


def changed(**changes):
    return lambda samples: [sample | changes for sample in samples]


GIVEN = {
    "fewer": (
        lambda samples: samples[:-1],
        r"one completion for each of 4 prompts, got 3; row 3 \('why\?'\) has none",
    ),
    "none": (lambda samples: [], "each of 4 prompts, got 0"),
    "twice": (lambda samples: [samples[0], *samples], "rows 0 to 3, got a second completion of row 0"),
    "another row": (changed(row=7), "rows 0 to 3, got a completion of row 7"),
    "no samples": (lambda samples: ["text"], "expected samples, dictionaries as .* got 'text'"),
    "another prompt": (changed(prompt_ids=[9]), r"the prompt_ids \[9\]: expected \[.*another tokenizer's or another"),
    "text alone": (changed(completion_ids=None), "completion_ids None: expected a list of whole numbers"),
    "numbers": (changed(completion_ids=[1.5]), r"completion_ids \[1.5\]: expected a list of whole numbers"),
    "switches": (changed(completion_ids=[True]), r"completion_ids \[True\]: expected a list of whole numbers"),
    "rows": (changed(row=[0]), r"rows 0 to 3, got a completion of row \[0\]"),
    "empty": (changed(completion_ids=[]), "has no token: expected at least one. .*the end token alone"),
    "other ids": (changed(completion_ids=[5, 99999]), "token 99999, and the policy's vocabulary has 259: another tok"),
    "negative": (changed(completion_ids=[-1]), "token -1, and the policy's vocabulary"),
    "long": (changed(completion_ids=[5] * 6), "has 6 tokens: expected at most max_completion_length=5"),
    "log_probs": (
        changed(log_probs=[-1.0] * 4),
        "log_probs: expected a number for each of its 5 tokens, got 4 of them",
    ),
    "log_probs of": (changed(log_probs="-1"), "expected a number for each of its 5 tokens, got '-1'"),
}


class Yields(Replaying):
    """What `make` makes of a part and its samples."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def generate(self, parts, sampling, policy):
        return (self.make(part, samples) for part, samples in super().generate(parts, sampling, policy))


@pytest.mark.parametrize(
    "make",
    [
        lambda part, samples: samples,
        lambda part, samples: samples[:2],  # as many as there should be of a part and its samples
        lambda part, samples: samples[0],
        lambda part, samples: (part, samples, 1),
        lambda part, samples: (part.index, samples),
        lambda part, samples: (part, None),
    ],
)
def test_what_is_no_part_with_its_samples(tmp_path, make):
    message = r"the generator 'replaying': expected its `generate` to yield \(part, samples\).*Mend the generator"
    with pytest.raises(ValueError, match=message):
        rollout(grpo_trainer(tmp_path, Yields(make)))
    with pytest.raises(ValueError, match=message):
        raft_trainer(tmp_path / "raft", generator=Yields(make)).train()


def test_numbers_of_numpy_are_numbers(tmp_path):
    def in_numpy(samples):
        numbers = {"completion_ids": np.array([5, 6]), "log_probs": np.array([-1.0, -2.0], dtype=np.float32)}
        listed = {"completion_ids": list(np.array([5, 6])), "log_probs": [np.float32(-1), np.float64(-2)]}
        return [
            sample | {"row": np.int64(sample["row"])} | (listed if sample["row"] else numbers) for sample in samples
        ]

    given = rollout(grpo_trainer(tmp_path, Gives(in_numpy)))
    assert given["completion_ids"] == [[5, 6]] * 4 and given["logprobs"] == [[-1.0, -2.0]] * 4
    assert {type(number) for number in given["completion_ids"][0] + given["completion_ids"][1]} == {int}


@pytest.mark.parametrize(("make", "message"), GIVEN.values(), ids=GIVEN)
def test_what_a_generator_gives(tmp_path, make, message):
    trainer = grpo_trainer(tmp_path, Gives(make))
    with pytest.raises(ValueError, match=rf"vllm_rollouts\(Gives\(…\)\).*{message}"):
        rollout(trainer)


def test_rows_in_another_order_find_their_prompts(tmp_path):
    turned, straight = Gives(lambda samples: samples[::-1]), Replaying()
    given = [rollout(grpo_trainer(tmp_path, generator))["completion_ids"] for generator in (turned, straight)]
    assert given[0] == given[1]


def test_a_generator_that_forgets_to_yield(tmp_path):
    class Forgets(Replaying):
        def generate(self, parts, sampling, policy):
            return None

    with pytest.raises(ValueError, match="each of 4 prompts, got 0"):
        rollout(grpo_trainer(tmp_path, Forgets()))


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (VLLMGenerator, r"got the class VLLMGenerator. Give an object of it, VLLMGenerator\(…\)"),
        ("vllm", "got 'vllm', which has no 'name' and no 'generate' and no 'settings'"),
        (lambda prompts: prompts, "has no 'name' and no 'generate'"),
    ],
)
def test_what_is_no_generator(tmp_path, generator, message):
    with pytest.raises(ValueError, match=rf"vllm_rollouts\(.*expected a generator.*{message}"):
        vllm_rollouts(generator)
    with pytest.raises(ValueError, match=rf"evaluate\(generator=…\): expected a generator.*{message}"):
        data = Dataset.from_dict({"prompt": ["a"]})
        evaluate(
            tiny_llama(byte_tokenizer()),
            data,
            even_letters,
            tokenizer=byte_tokenizer(),
            generator=generator,
            max_completion_length=4,
        )
    with pytest.raises(ValueError, match=rf"Trainer\(generator=…\): expected a generator.*{message}"):
        raft_trainer(tmp_path, generator=generator)


def test_others_completions_are_refused(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    for generator in (EndpointGenerator("m", "http://localhost:1/v1"), FileGenerator(file)):
        with pytest.raises(ValueError, match=r"its completions are not the policy's.*RAFTTrainer and ReSTTrainer"):
            vllm_rollouts(generator)


@pytest.mark.parametrize(
    "option",
    [
        {"use_transformers_continuous_batching": True},
        {"generation_kwargs": {"num_beams": 2}},
        {"cache_implementation": "static"},
        {"transformers_continuous_batching_config": {"max_memory_percent": 0.5}},
        {"vllm_gpu_memory_utilization": 0.5},
        {"vllm_max_model_length": 64},
        {"vllm_importance_sampling_clip_max": None},
        {"vllm_importance_sampling_correction": False},
    ],
)
def test_options_of_trls_own_sampling(tmp_path, option):
    trainer = grpo_trainer(tmp_path, Replaying(), **option)
    with pytest.raises(ValueError, match=rf"{next(iter(option))}=.*: the generator samples, and .*Leave one"):
        rollout(trainer)


def test_what_says_the_default_or_nothing_is_taken(tmp_path):
    rollout(grpo_trainer(tmp_path, Replaying(), vllm_gpu_memory_utilization=0.3, generation_kwargs={}))


def test_a_cap_under_its_older_name(tmp_path):
    with pytest.warns(FutureWarning):
        trainer = grpo_trainer(tmp_path, Replaying(), vllm_importance_sampling_cap=2.0)
    with pytest.raises(
        ValueError, match=r"vllm_importance_sampling_c.*=2.0: the generator samples, and it is of TRL's"
    ):
        rollout(trainer)


def test_trls_own_vllm_is_refused(tmp_path):
    trainer = grpo_trainer(tmp_path, Replaying())
    trainer.args.use_vllm = True  # at construction TRL would start it
    with pytest.raises(
        ValueError, match="use_vllm=True: the generator samples, and TRL would run an engine of its own"
    ):
        rollout(trainer)


def test_trainers_that_cannot_be_sampled_for(tmp_path):
    for name, value, message in (
        ("tools", [print], "tools and environments are not supported"),
        ("processing_class", object(), "a vision-language model is not supported"),
        ("is_fsdp_enabled", True, "which DeepSpeed and FSDP shard"),
    ):
        trainer = grpo_trainer(tmp_path, Replaying())
        setattr(trainer, name, value)
        with pytest.raises(ValueError, match=message):
            rollout(trainer)


def test_a_policy_that_the_generator_cannot_serve(tmp_path):
    class Refuses(Replaying):
        def check_policy(self, policy, sampling):
            raise ValueError(f"{type(policy.model).__name__}, {sampling.max_completion_length}")

    with pytest.raises(ValueError, match=r"^LlamaForCausalLM, 5$"):
        rollout(grpo_trainer(tmp_path, Refuses()))
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM, \d"):
        raft_trainer(tmp_path / "raft", generator=Refuses())


def test_a_generator_knows_before_it_begins_how_long_it_will_become(tmp_path):
    """Of training's and evaluation's prompts the longest, as the policy reads it, with its completion."""

    class Expects(Replaying):
        def expect(self, tokens):
            assert not self.asked
            self.tokens = tokens

    prompts, held_out = (
        ("say it", "a longer prompt") * 8,
        Dataset.from_dict({"prompt": ["the longest of the prompts"]}),
    )
    trained = grpo_trainer(tmp_path, one := Expects(), prompts=prompts)
    rollout(trained)
    assert one.tokens == len("a longer prompt") + 5
    for several in (held_out, {"a": held_out, "b": held_out.map(lambda row: {"prompt": "x" + row["prompt"]})}):
        rollout(grpo_trainer(tmp_path, one := Expects(), prompts=prompts, eval_dataset=several))
        assert one.tokens == len("the longest of the prompts") + 5 + isinstance(several, dict)
    chat = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rollout(grpo_trainer(tmp_path, one := Expects(), prompts=chat), chat[:4])
    assert one.tokens == len(trained._tokenize_prompts([chat[1]])[0][0]) + 5
    streamed = grpo_trainer(tmp_path, one := Expects())
    streamed.train_dataset = Dataset.from_dict({"prompt": ["a"]}).to_iterable_dataset()
    rollout(streamed)
    assert not hasattr(one, "tokens")
    raft_trainer(tmp_path / "raft", generator=(one := Expects()))
    assert one.tokens > 0


@pytest.mark.slow
def test_two_processes_sample_what_one_does(tmp_path):
    """Each its own rows, by their numbers over both; the error of one reaches the other."""
    (tmp_path / "run").mkdir()
    done = run_in_two(Path(__file__).parent / "rollouts_case.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = rollout(grpo_trainer(tmp_path / "one", TransformersGenerator()))["completion_ids"]
    assert [ids for process in range(2) for ids in json.loads((tmp_path / f"{process}.json").read_text())] == one
    errors = [(tmp_path / f"{process}.error").read_text() for process in range(2)]
    assert errors[0].startswith("ValueError: vllm_rollouts(Replaying(…)): row 0 ('a') has no token")
    assert errors[1].startswith("RuntimeError: process 0 of 2 failed: ValueError: vllm_rollouts")


def test_what_a_policy_is_asked_with(tmp_path):
    trainer = grpo_trainer(tmp_path, Replaying(), chat_template_kwargs={"a": 1})
    policy = policy_of(trainer)
    assert policy.end_token_ids(["x"]) == frozenset({1}) and policy.chat_template_kwargs == {"a": 1}
    assert sampling_of(trainer.args, seed=3).seed == 3
