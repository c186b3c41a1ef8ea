"""The plan in the trainers: said at the start, beside what was measured at the end, and in the error in between."""

import re
import warnings

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import IA3Config, get_peft_model
from ppo_case import PROMPTS, even_letters, ppo_trainer
from self_training_case import trainer as raft_trainer
from shared_case import PAIRS, base_path, four_roles, lora, quiet
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model, tokenizer_with_options
from transformers import TrainerCallback
from trl import SFTConfig

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, LearnedReward, SharedBase
from trl_ext.memory_planning.memory_watch import MemoryWatch
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan

MIB = 2**20


class FakeCard:
    """A card whose peaks are told in advance, one pair after another."""

    def __init__(self, *peaks, total=2**40):
        self.given, self.size = list(peaks), total

    def total(self):
        return self.size

    def peaks(self):
        return self.given.pop(0) if self.given else (0, 0)

    def reset(self):
        pass

    def release(self):
        self.released = getattr(self, "released", 0) + 1


def phases_of(trainer) -> list[str]:
    """The phases that a run goes through, without repeats in a row."""
    seen, enter = [], trainer.memory.enter

    def record(phase):
        if not seen or seen[-1] != phase:
            seen.append(phase)
        enter(phase)

    trainer.memory.enter = record
    if hasattr(trainer, "grower"):
        trainer.grower.enter = record
    trainer.train()
    return seen


def test_phases_of_ppo(tmp_path):
    trainer = ppo_trainer(tmp_path, num_iterations=2, max_steps=3)
    assert phases_of(trainer) == ["train", "generate", "score", "train", "generate", "score", "train", None]


def test_phases_of_ppo_without_reference(tmp_path):
    assert phases_of(ppo_trainer(tmp_path, beta=0.0, max_steps=1)) == ["train", "generate", "score", "train", None]


def test_phases_of_raft(tmp_path):
    phases = phases_of(raft_trainer(tmp_path))
    assert phases == ["train", "generate", "score", "train", "generate", "score", "train", None]


def test_a_phase_keeps_its_highest_peaks():
    card = FakeCard((5, 9), (7, 8), (6, 20))
    watch = MemoryWatch(lambda: None, card)
    for phase in ("generate", "score", "generate", None):
        watch.enter(phase)
    assert watch.measured == {"generate": (6, 20), "score": (7, 8)}
    assert card.released == 2  # what sampling had cached, each time it was over


def test_the_plan_is_said_and_what_was_measured_beside_it(tmp_path, capsys):
    trainer = ppo_trainer(tmp_path, max_steps=1)
    peaks = [(1, 1), (3 * MIB, 4 * MIB), (1, 1), (1, 1)]
    trainer.memory.card = FakeCard(*peaks)
    trainer.train()
    said = "".join(capsys.readouterr())
    assert re.search(r"memory plan \(not verified on a GPU\): peak \d\.\d MiB in \w+", said)
    planned = trainer.memory.plan.phases["generate"].bytes / 2**30
    assert f"memory in generate: 0.00 GiB allocated, 0.00 reserved, planned {planned:.2f}" in said


def test_the_plan_is_said_once(tmp_path, capsys, caplog):
    """In the log where it is read, else in the terminal; and a warning says it itself."""
    ppo_trainer(tmp_path / "a", max_steps=1).train()
    assert "".join(capsys.readouterr()).count("memory plan (") == 1 and "memory plan (" not in caplog.text
    with caplog.at_level("INFO", logger="trl_ext"):
        ppo_trainer(tmp_path / "b", max_steps=1).train()
    assert "".join(capsys.readouterr()).count("memory plan (") == 0 and caplog.text.count("memory plan (") == 1
    trainer = ppo_trainer(tmp_path / "c", max_steps=1)
    trainer.memory.card = FakeCard(total=200_000)
    with pytest.warns(UserWarning, match="above what is free"):
        trainer.train()
    assert "memory plan (" not in "".join(capsys.readouterr())


def test_on_a_cpu_nothing_is_measured(tmp_path):
    trainer = ppo_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert trainer.memory.card is None and trainer.memory.measured == {} and trainer.memory.plan.peak > 0


def test_a_plan_above_what_is_free_warns_with_the_changes(tmp_path):
    trainer = ppo_trainer(tmp_path, max_steps=1, gradient_accumulation_steps=2)
    trainer.memory.card = FakeCard(total=200_000)
    with pytest.warns(
        UserWarning, match=r"above what is free, 0\.0 GiB: memory plan .*Cheapest changes.*micro-batches"
    ):
        trainer.train()


def test_the_plan_reads_the_run_off_its_models(tmp_path):
    base = SharedBase.from_pretrained(base_path(tmp_path), bits=8)
    roles = four_roles(base)
    trainer = ppo_trainer(
        tmp_path / "run",
        model=roles["policy"],
        reward_funcs=[even_letters, base.reward_model(lora(), name="scorer", batch_size=3)],
        value_model=roles["value"],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )
    settings = trainer._memory_plan().settings
    assert (settings.bits, settings.lora, settings.dtype, settings.device) == (8, 4, "float32", "cpu")
    assert (settings.batch, settings.micro_batch, settings.reward_batch) == (8, 2, 3)
    assert settings.value_model and settings.shared and settings.reference and settings.gradient_checkpointing
    assert (settings.reward_models, settings.prompt_length, settings.completion_length) == (1, 12, 5)


def test_models_with_bases_of_their_own_are_told(tmp_path):
    tokenizer = byte_tokenizer()
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    trainer = ppo_trainer(tmp_path, reward_funcs=reward)
    settings = trainer._memory_plan().settings
    assert not settings.shared and settings.lora is None and not settings.value_model


def test_the_longest_prompt():
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "a"}]))
    assert longest_prompt(stream, byte_tokenizer()) == 512  # whose end nobody knows
    assert longest_prompt(Dataset.from_dict({"prompt": PROMPTS}), byte_tokenizer()) == len("tell me more")
    chat = [[{"role": "user", "content": "hi"}]]
    assert longest_prompt(Dataset.from_dict({"prompt": chat}), byte_tokenizer()) == len("u:hi\na:")


@pytest.mark.parametrize("make", [ppo_trainer, raft_trainer], ids=["ppo", "raft"])
def test_options_of_the_template_count_in_the_longest_prompt(tmp_path, make):
    options = {"prompts": [[{"role": "user", "content": "hi"}]] * 8, "processing_class": tokenizer_with_options()}
    trainer = make(tmp_path, chat_template_kwargs={"shout": True}, **options)
    assert trainer._memory_plan().settings.prompt_length == len("LOUDu:hi\na:")


def test_a_run_without_a_plan_goes_on(tmp_path, caplog):
    trainer = ppo_trainer(tmp_path, max_steps=1)

    def none():
        raise ValueError("unknown")

    trainer.memory.make_plan = none
    with caplog.at_level("INFO", logger="trl_ext"):
        trainer.train()
    assert "memory plan: none for this run (unknown)" in caplog.text


def out_of_memory(completions, **columns):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("make", [ppo_trainer, raft_trainer])
def test_out_of_memory_says_where_and_what_would_help(make, tmp_path):
    trainer = make(tmp_path, reward_funcs=out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    message = str(caught.value)
    assert re.match(
        rf"{type(trainer).__name__}\.train: out of memory in the phase 'score'\. It was planned to", message
    )
    assert "Cheapest changes" in message and "no checkpoint was written yet" in message
    assert "(CUDA out of memory. Tried to allocate 20.00 MiB.)" in message
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError) and caught.value.__cause__.__cause__ is None


def test_out_of_memory_keeps_checkpoints(tmp_path):
    class RunOut(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    trainer = ppo_trainer(tmp_path, callbacks=[RunOut()], **options)
    with pytest.raises(torch.OutOfMemoryError, match=r"in the phase 'train'.*checkpoints are kept.*checkpoint-2'"):
        trainer.train()
    again = ppo_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_a_reward_model_that_runs_out(tmp_path):
    tokenizer = byte_tokenizer()
    args = ImitationRewardConfig(**quiet(tmp_path, max_length=64))
    trainer = ImitationRewardTrainer(
        tiny_reward_model(tokenizer, tie_word_embeddings=True), args, train_dataset=PAIRS, processing_class=tokenizer
    )
    trainer.compute_loss = lambda *args, **kwargs: out_of_memory([])
    with pytest.raises(
        torch.OutOfMemoryError, match=r"ImitationRewardTrainer\.train: out of memory in the phase 'train'"
    ):
        trainer.train()


def test_pairs_of_any_length_for_a_model_without_window(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    model.config.max_position_embeddings = -1
    args = ImitationRewardConfig(**quiet(tmp_path, max_length=None))
    trainer = ImitationRewardTrainer(model, args, train_dataset=PAIRS, processing_class=tokenizer)
    settings = trainer._memory_plan().settings
    assert settings.prompt_length + settings.completion_length == 2 * longest_prompt(iter([]), tokenizer)


class Elsewhere:
    """Whose completions are no samples of the policy."""

    name, samples_policy = "elsewhere", False

    def generate(self, parts, sampling, policy):
        raise AssertionError

    def settings(self):
        return {}


@pytest.mark.parametrize(
    ("generator", "options", "who"),
    [
        (None, {}, ("transformers", False)),
        (Elsewhere(), {}, ("endpoint", False)),
        (Elsewhere(), {"beta": 0.1}, ("endpoint", True)),
        (Elsewhere(), {"eval_dataset": Dataset.from_dict({"prompt": PROMPTS[:2]})}, ("endpoint", True)),
    ],
)
def test_raft_is_planned_by_who_samples(generator, options, who, tmp_path):
    settings = raft_trainer(tmp_path, generator=generator, **options)._memory_plan().settings
    assert (settings.generator, settings.policy_passes) == who


def test_a_reward_model_is_planned_with_the_head_that_it_has(tmp_path):
    tokenizer = byte_tokenizer()
    head = torch.nn.Embedding(len(tokenizer), 16)
    for given in (None, head):
        model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
        args = ImitationRewardConfig(**quiet(tmp_path, max_length=64))
        made = ImitationRewardTrainer(
            model, args, train_dataset=PAIRS, processing_class=tokenizer, imitation_head=given
        )
        plan = made._memory_plan()
        assert plan.settings.imitation_head == (given is not None)
        assert plan.phases["train"].terms.get("imitation head", 0) == (0 if given is None else head.weight.nbytes)


@pytest.mark.gpu
def test_a_card_that_is_full(tmp_path):
    """Of which the models have taken their part, so that it is the run that meets the end of it."""
    trainer = ppo_trainer(tmp_path, model=tiny_llama(byte_tokenizer(), hidden_size=1024, num_hidden_layers=16))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError, match=r"PPOTrainer\.train: out of memory in the phase"):
            trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("error", [ValueError("unknown"), KeyError("default")])
def test_no_plan_never_stops_a_run(tmp_path, error):
    trainer = ppo_trainer(tmp_path, max_steps=1)

    def broken():
        raise error

    trainer.memory.make_plan = broken
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("name", ["advice", "line", "verdict"])
def test_a_plan_that_fails_never_stops_a_run(tmp_path, monkeypatch, name):
    trainer = ppo_trainer(tmp_path, max_steps=1)
    trainer.memory.card = FakeCard(total=200_000)

    def broken(*args):
        raise ValueError("quantised weights are frozen")

    monkeypatch.setattr(MemoryPlan, name, broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    unknown = "What would need less is not known (quantised weights are frozen)."
    assert any(unknown in str(warning.message) for warning in said) == (name != "line")
    assert trainer.state.global_step == 1


def test_out_of_memory_is_said_where_advice_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryPlan, "advice", lambda plan, room: 1 / 0)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"phase 'score'.*What would need less is not known \(division by"
    ):
        ppo_trainer(tmp_path, reward_funcs=out_of_memory).train()


def test_an_adapter_of_another_name(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_llama(byte_tokenizer()), LoraConfig(r=3, target_modules=["q_proj"]), adapter_name="mine"
    )
    trainer = raft_trainer(tmp_path, model=model)
    assert trainer._memory_plan().settings.lora == 3


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_the_plan_has_the_trainers_optimizer(tmp_path, optim):
    args = SFTConfig(str(tmp_path), optim=optim, use_cpu=True, bf16=False)
    plan = run_plan("sft", tiny_llama(byte_tokenizer()), args, prompt_length=4, completion_length=4)
    assert plan.settings.optimizer == optim.removesuffix("_torch") and plan.settings.lora is None


def test_an_adapter_that_cannot_be_counted_is_named(tmp_path):
    adapter = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    model, args = (
        get_peft_model(tiny_llama(byte_tokenizer()), adapter),
        SFTConfig(str(tmp_path), use_cpu=True, bf16=False),
    )
    with pytest.raises(ValueError, match="memory_plan: expected LoRA, got IA3Config, whose weights it cannot count"):
        run_plan("sft", model, args, prompt_length=4, completion_length=4)
