"""The rows of `ppo_7b_24gb.py`: what each builds, and how it is watched while it trains."""

import gc
import tempfile
from collections.abc import Callable

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer

from examples.benchmarks.common.completion_lengths import ending
from examples.benchmarks.common.live_bytes import leave_peaks
from examples.benchmarks.common.made_models import EOS, made_base, made_model, word_tokenizer
from examples.benchmarks.common.run_phases import Phases, metered
from examples.benchmarks.common.time_limit import TimeUp, at_most
from examples.benchmarks.memory.ppo_7b_work import RANK, Work, planned
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer
from trl_ext.generation.transformers_generator import TransformersGenerator

# Rows: from the work and a folder to a trainer


def loaded(phases: Phases, make: Callable, work: Work, **options):
    """A base or a model, made in the phase that the plan calls `load`."""
    with phases.phase("load"):
        return make(work.shape, **work.model_options, **options)


def ppo(work: Work, folder: str, phases: Phases):
    """PPO with critic and reward model on one base."""
    base = loaded(phases, made_base, work)
    return PPOTrainer(
        base.policy(),
        base.reward_model(batch_size=work.plan.settings.reward_batch),
        PPOConfig(**work.on_policy(folder)),
        work.prompts(),
        value_model=base.value_model(),
        processing_class=base.tokenizer,
    )


def separate(work: Work, folder: str, phases: Phases):
    """The same with four models: policy, reference, reward and value model each have a base of their own."""
    scorer = loaded(phases, made_base, work).reward_model(batch_size=work.plan.settings.reward_batch)
    critic = loaded(phases, made_base, work).value_model()
    gc.collect()  # the two vocabulary heads that nobody needs
    reference = loaded(phases, made_base, work).model
    base = loaded(phases, made_base, work)
    trainer = PPOTrainer(
        base.policy(),
        scorer,
        PPOConfig(**work.on_policy(folder)),
        work.prompts(),
        value_model=critic,
        processing_class=base.tokenizer,
    )
    grpo_trainer.add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=False)
    trainer.ref_model = reference  # TRL would take the policy's base, without its adapter
    return trainer


def grpo(work: Work, folder: str, phases: Phases):
    """TRL's GRPO, policy and reward model on one base."""
    return _of_groups(GRPOTrainer, GRPOConfig, work, folder, phases)


def rloo(work: Work, folder: str, phases: Phases):
    """TRL's RLOO, policy and reward model on one base."""
    return _of_groups(RLOOTrainer, RLOOConfig, work, folder, phases)


def _of_groups(trainer, config, work: Work, folder: str, phases: Phases):
    base = loaded(phases, made_base, work)
    return trainer(
        base.policy(),
        base.reward_model(batch_size=work.plan.settings.reward_batch),
        config(**work.on_policy(folder, num_generations=work.samples)),
        work.prompts(),
        processing_class=base.tokenizer,
    )


def trl_grpo(work: Work, folder: str, phases: Phases):
    """GRPO as TRL alone does it: two models, and scores from its own path."""
    policy = loaded(phases, made_model, work)
    scorer = loaded(phases, made_model, work, scorer=True, seed=1)
    tokenizer = word_tokenizer(policy.config.vocab_size)
    return GRPOTrainer(
        policy,
        scorer,
        GRPOConfig(**work.on_policy(folder, num_generations=work.samples)),
        work.prompts(),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def reward(work: Work, folder: str, phases: Phases):
    """Training a reward model on the base, with the imitation term."""
    base = loaded(phases, made_base, work)
    args = ImitationRewardConfig(**work.of_any_trainer(folder), max_length=work.window, max_steps=work.steps)
    return ImitationRewardTrainer(
        base.reward_model().module,
        args,
        train_dataset=work.pairs(),
        processing_class=base.tokenizer,
        imitation_head=base.model.get_output_embeddings(),
    )


def trl_reward(work: Work, folder: str, phases: Phases):
    """Training a reward model as TRL alone does it, without the imitation term."""
    model = loaded(phases, made_model, work, scorer=True)
    settings = work.of_any_trainer(folder) | {
        "bf16": True
    }  # or TRL's head in bf16 could not read a CPU's states in fp32
    return RewardTrainer(
        model,
        RewardConfig(**settings, max_length=work.window, max_steps=work.steps),
        train_dataset=work.pairs(),
        processing_class=word_tokenizer(model.config.vocab_size),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="SEQ_CLS"),
    )


def raft(work: Work, folder: str, phases: Phases):
    """RAFT, policy and reward model on one base; a stage has as many prompts as a batch has completions."""
    base = loaded(phases, made_base, work)
    scorer = base.reward_model(batch_size=work.plan.settings.reward_batch)

    def scored(**columns) -> list[float]:
        with phases.phase("rewards"):
            return scorer(**columns)

    args = RAFTConfig(
        **work.of_any_trainer(folder),
        num_stages=work.steps,
        stage_batch_size=work.batch,
        num_generations=work.samples,
        max_completion_length=work.completion_length,
        generation_batch_size=work.batch,
        drop_truncated=False,
        level_stages=0,
    )
    return RAFTTrainer(
        base.policy(),
        scored,
        args,
        work.prompts(),
        generator=WatchedGenerator(work, phases),
        processing_class=base.tokenizer,
    )


ROWS: dict[str, Callable] = {
    "ppo": ppo,
    "reward": reward,
    "raft": raft,
    "separate": separate,
    "grpo": grpo,
    "rloo": rloo,
    "trl-reward": trl_reward,
    "trl-grpo": trl_grpo,
}
OURS = ("ppo", "separate", "reward", "raft")
ON_POLICY = ("ppo", "separate", "grpo", "rloo", "trl-grpo")


# Watching


class WatchedGenerator(TransformersGenerator):
    """The default generator, whose completions end by the given lengths and whose time and tokens are noted."""

    def __init__(self, work: Work, phases: Phases):
        super().__init__(batch_size=work.batch)
        self.work, self.phases = work, phases

    def generate(self, parts, sampling, policy):
        for part in parts:
            with self.phases.phase("generate"), ending(policy.model, self.work.lengths, end_id=EOS):
                ((_, samples),) = super().generate([part], sampling, policy)
            self.phases.count_completions([len(sample["completion_ids"]) for sample in samples])
            yield part, samples


def watch_rollouts(trainer, work: Work, phases: Phases) -> None:
    """Let an on-policy trainer's completions end by the given lengths, and note its phases."""
    generate = trainer.model.generate

    def watched(**inputs):
        with phases.phase("generate"), ending(trainer.model, work.lengths, end_id=EOS):
            output = generate(**inputs)
        phases.count_completions(lengths_of(output[:, inputs["input_ids"].size(1) :]))
        return output

    trainer.model.generate = watched
    trainer._calculate_rewards = in_phase(phases, "rewards", trainer._calculate_rewards)
    trainer._generate_and_score_completions = in_phase(phases, "score", trainer._generate_and_score_completions)


def lengths_of(drawn: torch.Tensor) -> list[int]:
    """Tokens of each completion up to its end token, that one included.

    >>> lengths_of(torch.tensor([[5, EOS, 0], [5, 6, 7]]))
    [2, 3]
    """
    ended = (drawn == EOS).int()
    return (ended.cumsum(1) - ended == 0).sum(1).tolist()


def in_phase(phases: Phases, name: str, function: Callable) -> Callable:
    def watched(*args, **kwargs):
        with phases.phase(name):
            return function(*args, **kwargs)

    return watched


def count_trained_tokens(trainer, phases: Phases) -> None:
    """Note the real tokens of each pass that goes backward later."""

    def count(module, args, kwargs):
        if torch.is_grad_enabled():
            phases.count("train", kwargs["attention_mask"].sum())

    trainer.model.get_base_model().base_model.register_forward_pre_hook(count, with_kwargs=True)


class Laps(TrainerCallback):
    """Tells the phases when a step of the row is over."""

    def __init__(self, phases: Phases, steps: int):
        self.phases, self.steps = phases, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % (state.max_steps // self.steps) == 0:
            self.phases.next_lap()


def train(work: Work, phases: Phases) -> None:
    """Build a row and train it."""
    with tempfile.TemporaryDirectory() as folder:
        with phases.phase("build"):
            trainer = ROWS[work.row](work, folder, phases)
        trainer.remove_callback(PrinterCallback)
        if work.row in OURS:
            leave_peaks(trainer)
        if work.row in ON_POLICY:
            watch_rollouts(trainer, work, phases)
        count_trained_tokens(trainer, phases)
        trainer.add_callback(Laps(phases, work.steps))
        with phases.phase("train"):
            trainer.train()


def run(work: Work, *, card: int, seconds: float | None = None) -> dict:
    """Train a row and say what it took; running out of memory, or of time, is a result too.

    Args:
        work: The row.
        card: Bytes that the card may have.
        seconds: After which it ends.
    """
    with metered(work.device, card=card) as meter:
        phases = Phases(meter)
        try:
            with at_most(seconds):
                train(work, phases)
            status = "ok"
        except TimeUp:
            status = f"stopped after {seconds:g} s"
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
                raise
            status = "out of memory"
    return {"status": status} | measured(work, phases) | planned(work)


def measured(work: Work, phases: Phases) -> dict:
    """Peaks, tokens per second, and what a step's time went to."""
    seconds = {name: value for name, value in phases.seconds().items() if name not in ("load", "build")}
    step = sum(seconds.values())
    return {
        "peaks": phases.peaks,
        "peak": phases.meter.whole,
        "rates": phases.rates(),
        "seconds": seconds,
        "warmed_up": phases.warmed_up,
        "hours": step / work.prompts_per_step * 10_000 / 3600,
        "rewards_share": seconds.get("rewards", 0.0) / step if step else 0.0,
        "longest": phases.longest,
    }
