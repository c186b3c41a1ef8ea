"""PPO whose rollouts a generator samples: it learns, goes on as it began, keeps one base, and says what cannot go together."""

import shutil

import pytest
import torch
from peft import LoraConfig
from ppo_case import PROMPTS, even_letters, logged, ppo_trainer, rollout_of, several_end_tokens
from rollouts_case import Replaying
from shared_case import base_path, lora
from test_ppo_learns import ALL_LINEAR, first_and_last_score, quantised
from test_ppo_resume import assert_same_state, trainer

from trl_ext import FileGenerator, SharedBase, TransformersGenerator, VLLMGenerator, vllm_rollouts
from trl_ext.trainer_kit.run_record import read_record


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(tmp_path, seed):
    start, end = first_and_last_score(
        tmp_path, per_device_train_batch_size=64, learning_rate=2e-2, seed=seed, generator=TransformersGenerator()
    )
    assert start < 3 and end > 6  # of 8 characters


@pytest.mark.parametrize("make", [TransformersGenerator, Replaying])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, make):
    """The rollout in use comes from the checkpoint; the next has the same seeds, and so the same tokens."""
    options = {"eval_strategy": "steps", "eval_steps": 2} if make is Replaying else {"lora": True}
    whole = trainer(tmp_path / "whole", generator=make(), **options)
    whole.train()
    for step in (3, 8):  # inside and at the end of a rollout's epochs
        folder = tmp_path / f"stopped-{step}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = trainer(folder, generator=(generator := make()), **options)
        resumed.train(resume_from_checkpoint=True)
        assert_same_state(whole, resumed)
        if make is Replaying:
            then = whole.rollout_func.generator.seeds()
            assert generator.seeds() == then[-len(generator.seeds()) :] and len(generator.seeds()) < len(then)


def test_a_resumed_run_has_the_same_generator(tmp_path):
    run = trainer(tmp_path, generator=Replaying(), stop_at=2)
    run.train()
    assert read_record(tmp_path)["generator"] == {"name": "replaying", "generator": "replaying"}
    with pytest.raises(
        ValueError, match=r"name: 'replaying' then, 'transformers' now.*accept_changes=\['generator'\]"
    ):
        trainer(tmp_path, generator=TransformersGenerator()).train(resume_from_checkpoint=True)
    accepted = trainer(tmp_path, generator=TransformersGenerator(), accept_changes=["generator"], stop_at=3)
    accepted.train(resume_from_checkpoint=True)
    assert accepted.state.global_step == 3


@pytest.mark.parametrize("bits", [8, 4])
def test_on_a_quantised_base(tmp_path, bits):
    """No copy of it: the generator is given the trained model itself, adapter and all."""
    generator = Replaying()
    one = ppo_trainer(
        tmp_path, model=quantised(tmp_path / "base", bits, hidden_size=64), peft_config=ALL_LINEAR, generator=generator
    )
    weights = {id(parameter) for parameter in one.model.parameters()}
    one.train()
    for policy in generator.policies:
        assert {id(parameter) for parameter in policy.model.parameters()} == weights
    sampled = ppo_trainer(
        tmp_path / "own",
        model=quantised(tmp_path / "base", bits, hidden_size=64),
        peft_config=ALL_LINEAR,
        generator=TransformersGenerator(),
    )
    sampled.train()
    assert logged(sampled, "kl")[0] == 0.0 and logged(sampled, "ratio")[0] == 1.0


def test_on_a_shared_base(tmp_path):
    base = SharedBase.from_pretrained(base_path(tmp_path))
    policy = base.policy(lora())
    one = ppo_trainer(
        tmp_path, model=policy, value_model=base.value_model(lora()), generator=TransformersGenerator(),
        reward_funcs=base.reward_model(lora()), processing_class=base.tokenizer,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    one.train()
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)


@several_end_tokens
def test_stop_tokens_end_its_completions(tmp_path):
    letters = [chr(code) for code in range(ord("!"), ord("z"))]
    one = ppo_trainer(tmp_path, generator=TransformersGenerator(), stop_tokens=letters, max_completion_length=12)
    rollout, stops = rollout_of(one), set(one.eos_token_ids)
    rows = zip(rollout["completion_ids"], rollout["completion_mask"], strict=True)
    own = [ids[mask.bool()].tolist() for ids, mask in rows]
    assert any(ids[-1] in stops for ids in own) and not any(stops & set(ids[:-1]) for ids in own)


def test_trl_does_not_warn_of_it(tmp_path, recwarn):
    ppo_trainer(tmp_path, generator=TransformersGenerator())
    assert not [w for w in recwarn if "rollout_func" in str(w.message)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_func": lambda prompts, trainer: {}}, "with rollout_func: both would sample"),
        ({"use_vllm": True}, "use_vllm=True: the generator samples, and TRL would run an engine of its own"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching=True: the generator"),
        ({"generation_kwargs": {"num_beams": 2}}, r"generation_kwargs={'num_beams': 2}: the generator samples"),
        ({"cache_implementation": "static"}, "cache_implementation='static': the generator samples"),
        ({"generator": VLLMGenerator}, "expected a generator, got the class VLLMGenerator"),
        ({"generator": "vllm"}, "expected a generator.*got 'vllm'"),
        ({"peft_config": LoraConfig(task_type="CAUSAL_LM"), "use_vllm": True}, "use_vllm=True: the generator"),
    ],
)
def test_what_cannot_go_together(tmp_path, options, message):
    with pytest.raises(ValueError, match=rf"PPOTrainer\(generator=…\).*{message}"):
        ppo_trainer(tmp_path, **{"generator": TransformersGenerator()} | options)


def test_rollouts_of_a_generator_are_the_generator(tmp_path):
    """Checked at construction, named in the record, and a resumed run has the same."""

    class Refuses(Replaying):
        def check_policy(self, policy, sampling):
            raise ValueError("not this policy")

    with pytest.raises(ValueError, match=r"^not this policy$"):
        ppo_trainer(tmp_path, rollout_func=vllm_rollouts(Refuses()))
    with pytest.raises(ValueError, match=r"PPOTrainer\(generator=…\) with cache_implementation='static'"):
        ppo_trainer(tmp_path, rollout_func=vllm_rollouts(Replaying()), cache_implementation="static")
    trainer(tmp_path, rollout_func=vllm_rollouts(given := Replaying()), stop_at=2).train()
    assert read_record(tmp_path)["generator"] == {"name": "replaying", "generator": "replaying"}
    trainer(tmp_path / "other", generator=(asked := Replaying()), stop_at=2).train()
    assert given.seeds() == asked.seeds()
    with pytest.raises(ValueError, match="name: 'replaying' then, 'transformers' now"):
        trainer(tmp_path, rollout_func=vllm_rollouts(TransformersGenerator())).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("rollout_func", "message"),
    [
        (VLLMGenerator(), r"a generator is no function .*Give generator=VLLMGenerator\(…\)"),
        (VLLMGenerator, r"a generator is no function .*Give generator=VLLMGenerator\(…\)"),
        ("vllm", r"'vllm'\): expected a function of prompts and trainer.*generator=VLLMGenerator\(\)"),
    ],
)
def test_what_is_no_function_of_prompts(tmp_path, rollout_func, message):
    with pytest.raises(ValueError, match=rf"PPOTrainer\(rollout_func=.*{message}"):
        ppo_trainer(tmp_path, rollout_func=rollout_func)


def test_a_cap_of_weights_is_refused_where_no_log_probabilities_will_come(tmp_path):
    """Of a generator that says nothing of it, they may."""
    for given in ({"generator": TransformersGenerator()}, {"rollout_func": vllm_rollouts(TransformersGenerator())}):
        with pytest.raises(ValueError, match=r"sampling_weight_cap=5.0\): it does nothing where .*without log-prob"):
            ppo_trainer(tmp_path, sampling_weight_cap=5.0, **given)
    ppo_trainer(tmp_path, sampling_weight_cap=5.0, generator=Replaying())


def test_others_completions_are_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    with pytest.raises(ValueError, match=r"PPOTrainer\(generator=…\): its completions are not the policy's"):
        ppo_trainer(tmp_path, generator=FileGenerator(tmp_path / "samples.jsonl"))


def test_a_policy_that_the_generator_cannot_serve(tmp_path):
    class Refuses(Replaying):
        def check_policy(self, policy, sampling):
            raise ValueError(f"{type(policy.model).__name__}, {sampling.max_completion_length}, {policy.ends}")

    with pytest.raises(ValueError, match=r"^LlamaForCausalLM, 5, frozenset\(\{1\}\)$"):
        ppo_trainer(tmp_path, generator=Refuses())


def test_one_that_grows_with_its_prompts_is_told_at_once_how_far(tmp_path):
    """Before anything is sampled: vLLM is started once, with room for all."""
    one = VLLMGenerator("tiny")
    one.check_policy = lambda policy, sampling: None
    ppo_trainer(tmp_path, generator=one, prompts=[*PROMPTS, "x" * 40])
    assert one._expected == 40 + 5


def test_what_it_gives_is_looked_at(tmp_path):
    one = ppo_trainer(tmp_path, generator=Replaying(completion_ids=[]), reward_funcs=even_letters, prompts=PROMPTS)
    with pytest.raises(ValueError, match=r"PPOTrainer\(generator=…\): row 0 \('.*'\) has no token"):
        one.train()
