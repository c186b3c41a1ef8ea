"""Samples of a `Generator`, as TRL's trainers take them: a `rollout_func`."""

import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_ext.generation.endpoint_generator import EndpointGenerator
from trl_ext.generation.file_generator import FileGenerator
from trl_ext.generation.given_generator import check_policy, checked_generator, finished_parts
from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.generation.rollout_checks import checked_samples
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.adapters import keep_4_bit_layout
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.seeds import stable_seed
from trl_ext.trainer_kit.sharding import DDP, engine_of, refuse_engine
from trl_ext.trainer_kit.trl_versions import end_tokens

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

SAMPLED_BY = ("max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# Options of GRPOConfig that say how TRL itself samples, which it then does not.
TRLS_OWN = {
    "use_vllm": "TRL would run an engine of its own beside the generator, and send it merged weights",
    "use_transformers_continuous_batching": "TRL does not sample",
    "generation_kwargs": "no generator reads them",
    "cache_implementation": "TRL does not sample",
    "transformers_continuous_batching_config": "TRL does not sample",
}
WHOLE = "a generator is given the whole model, which DeepSpeed and FSDP shard"
TRLS_VLLM = "it is of TRL's vLLM, which does not run; those of a VLLMGenerator are its own arguments"


def vllm_rollouts(generator: Generator) -> "GeneratorRollouts":
    """A generator's samples for a plain GRPOTrainer: no merge, no weight sync, no second base in the training process.

        GRPOTrainer(…, rollout_func=vllm_rollouts(VLLMGenerator()))

    Options of sampling are the config's; `use_vllm` stays False. Nothing here corrects for the difference between the
    probabilities that sampled and those that are trained (vLLM's kernels round otherwise, and its base may be of another
    precision): TRL's correction runs only where TRL runs vLLM itself. `PPOTrainer(generator=…)` corrects for it.

    Args:
        generator: Who samples the policy: a `VLLMGenerator`, a `TransformersGenerator`, or anything with their methods.
            TRL takes no generator itself: `rollout_func=VLLMGenerator()` it would call in vain, at the first step.

    Returns:
        A `rollout_func`. The same run seed, optimizer step, number of the rollout in it and row in the batch of all
        processes give the same seed, also after a resume; evaluation has seeds of its own.
    """
    return GeneratorRollouts(generator, call=f"vllm_rollouts({shown(generator)})")


class GeneratorRollouts:
    """A generator in TRL's `rollout_func` protocol: one completion for each entry of `prompts`, in their order.

    TRL repeats a prompt as often as it wants samples of it, so each entry is a row of its own, with a seed of its own.

    Args:
        generator: Who samples.
        call: Where it was given, for messages.
    """

    def __init__(self, generator: Generator, *, call: str):
        self.generator, self.call = checked_generator(generator, call=call), call
        if isinstance(generator, EndpointGenerator | FileGenerator):
            raise ValueError(
                f"{call}: its completions are not the policy's, from whose own samples this trainer learns. Give a "
                "VLLMGenerator or a TransformersGenerator; RAFTTrainer and ReSTTrainer learn from others' completions."
            )
        self._counts: WeakKeyDictionary[GRPOTrainer, RolloutCount] = WeakKeyDictionary()  # of those that were checked

    def __call__(self, prompts: list, trainer: "GRPOTrainer") -> dict[str, Any]:
        """`prompt_ids`, `completion_ids` and `logprobs` (NaN where the generator gives none), a list per prompt."""
        if trainer not in self._counts:
            self.check(trainer)
        first = trainer.accelerator.process_index * len(prompts)
        part = Part(0, tuple(range(first, first + len(prompts))), tuple(prompts))
        policy, sampling = policy_of(trainer), sampling_of(trainer.args, seed=self._seed(trainer))
        with together(trainer.accelerator):
            with trainer.compute_loss_context_manager():  # its autocast
                answers = finished_parts(self.generator, [part], sampling, policy)
                samples = [sample for _, samples in answers for sample in samples]
            samples = checked_samples(samples, part, sampling, policy, call=self.call)
        log_probs = [sample["log_probs"] for sample in samples]
        return {
            "prompt_ids": [sample["prompt_ids"] for sample in samples],
            "completion_ids": [sample["completion_ids"] for sample in samples],
            "logprobs": _rows_of(log_probs, samples),
        }

    def check(self, trainer: "GRPOTrainer") -> None:
        """Raise a ValueError for a trainer that cannot be sampled for, or whose policy the generator cannot serve."""
        refuse_trls_own(trainer.args, call=self.call)
        refuse_engine(engine_of(trainer), trainer=self.call, why=WHOLE, instead=f"Let TRL sample. {DDP}")
        if trainer.tools:
            raise ValueError(
                f"{self.call}: tools and environments are not supported. Let TRL sample, or leave them out."
            )
        if not isinstance(trainer.processing_class, PreTrainedTokenizerBase):
            raise ValueError(f"{self.call}: a vision-language model is not supported. Let TRL sample.")
        sampling, data = sampling_of(trainer.args, seed=0), (trainer.train_dataset, trainer.eval_dataset)
        check_policy(self.generator, policy_of(trainer), sampling, *data)
        keep_4_bit_layout(trainer.model)  # a generator may sample in eval mode
        self._counts[trainer] = RolloutCount()
        trainer.add_callback(self._counts[trainer])

    def _seed(self, trainer: "GRPOTrainer") -> int:
        """Of this rollout, by what a checkpoint knows: several in one optimizer step are told apart by their order."""
        mode, step = "train" if trainer.model.training else "eval", trainer.state.global_step
        return stable_seed(trainer.args.seed, "rollout", mode, step, self._counts[trainer].next(mode, step))


class RolloutCount(TrainerCallback):
    """How many rollouts an optimizer step has had: from 0 wherever training, or an evaluation, begins."""

    def __init__(self):
        self.last: dict[str, tuple[int, int]] = {}  # by mode: a step, and the number that its next rollout gets

    def next(self, mode: str, step: int) -> int:
        """The number of a rollout of this step, "train" or "eval"."""
        last, number = self.last.get(mode, (step, 0))
        number = number if last == step else 0
        self.last[mode] = (step, number + 1)
        return number

    def on_train_begin(self, args, state, control, **kwargs):
        self.last.clear()

    def on_evaluate(self, args, state, control, **kwargs):
        self.last.pop("eval", None)

    on_predict = on_evaluate


def _rows_of(log_probs: list[list[float] | None], samples: list[Sample]) -> list[list[float]] | None:
    """A number per token, NaN in rows without any; None where no row has any."""
    if all(row is None for row in log_probs):
        return None
    unknown = ([math.nan] * len(sample["completion_ids"]) for sample in samples)
    return [nan if row is None else row for row, nan in zip(log_probs, unknown, strict=True)]


def refuse_trls_own(args: "GRPOConfig", *, call: str) -> None:
    """Raise a ValueError for an option of TRL's own sampling, which would do nothing."""
    defaults = defaults_of(args)
    reasons = TRLS_OWN | {name: TRLS_VLLM for name in defaults if name.startswith("vllm_")}
    for name, why in reasons.items():
        value = getattr(args, name)
        if value not in (defaults[name], {}):
            raise ValueError(f"{call} with {name}={value!r}: the generator samples, and {why}. Leave one of them out.")


def sampling_of(args: "GRPOConfig", *, seed: int) -> Sampling:
    """How one completion per prompt is sampled, by a trainer's config."""
    return Sampling(num_generations=1, seed=seed, **{name: getattr(args, name) for name in SAMPLED_BY})


def policy_of(trainer: "GRPOTrainer") -> Policy:
    """The model that is trained, whose completions end where the trainer says."""
    return Policy(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        trainer.args.chat_template_kwargs or {},
        frozenset(end_tokens(trainer)),
    )


def shown(generator: object) -> str:
    return f"{type(generator).__name__}(…)"
