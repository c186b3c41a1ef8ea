"""Who samples in PPO: TRL, a function of the user's, or a generator; and what of it cannot go together."""

import functools
from collections.abc import Callable

from peft import PeftModel
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from trl import GRPOTrainer

from trl_ext.generation.protocol import Generator, SaysLogProbs
from trl_ext.generation.rollouts import GeneratorRollouts, refuse_trls_own
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.ppo.sampling_gap import check_weight_cap, read_log_probs
from trl_ext.trainer_kit.adapters import loaded_bits
from trl_ext.trainer_kit.passes import under_adapter

CALL = "PPOTrainer(generator=…)"


def checked_sampler(
    generator: Generator | None, rollout_func: Callable | None, args: PPOConfig
) -> tuple[GeneratorRollouts | None, Callable | None]:
    """The generator as TRL's trainer asks it, or else the function that samples; None for what was not given.

    What `vllm_rollouts` made is taken as the generator in it.

    Raises:
        ValueError: For what is neither, where two would sample, or where an option would do nothing.
    """
    if generator is not None and rollout_func is not None:
        raise ValueError(f"{CALL} with rollout_func: both would sample. Leave one of them out.")
    if isinstance(rollout_func, GeneratorRollouts):
        generator, rollout_func = rollout_func.generator, None
    check_weight_cap(args, weighs=rollout_func is not None or _may_give_log_probs(generator))
    if generator is None:
        return None, _checked_function(rollout_func)
    rollouts = GeneratorRollouts(generator, call=CALL)
    refuse_trls_own(args, call=CALL)
    return rollouts, None


def _may_give_log_probs(generator: Generator | None) -> bool:
    return generator is not None and (not isinstance(generator, SaysLogProbs) or generator.gives_log_probs)


def _checked_function(rollout_func: Callable | None) -> Callable | None:
    """It, or a ValueError for what TRL would call in vain."""
    call = f"PPOTrainer(rollout_func={rollout_func!r})"
    is_class = isinstance(rollout_func, type)
    if isinstance(rollout_func, Generator) and (is_class or not callable(rollout_func)):  # a class has the methods too
        name = (rollout_func if is_class else type(rollout_func)).__name__
        raise ValueError(f"{call}: a generator is no function of prompts and trainer. Give generator={name}(…).")
    if rollout_func is not None and not callable(rollout_func):
        raise ValueError(
            f"{call}: expected a function of prompts and trainer, as GRPOTrainer takes it. Give one, or generator=…, e.g. "
            "generator=VLLMGenerator()."
        )
    return rollout_func


def ask(rollouts: GeneratorRollouts | None, trainer: GRPOTrainer) -> None:
    """Let a trainer that has been built be sampled by a generator, if there is one."""
    if rollouts is not None:
        trainer.rollout_func = rollouts  # not before: TRL would warn that it is experimental
        rollouts.check(trainer)


def non_empty(rollout_func: Callable | None) -> Callable | None:
    """A rollout function whose completions must have a token each: PPO pays the score on the last one. None of None."""
    if rollout_func is None:
        return None

    @functools.wraps(rollout_func)
    def checked(prompts, trainer):
        output = rollout_func(prompts, trainer)
        completions = output.get("completion_ids", ())
        empty = [row for row, ids in enumerate(completions) if len(ids) == 0]
        if empty:
            raise ValueError(
                f"PPOTrainer(rollout_func=…): expected at least one token per completion, got none in {len(empty)} of "
                f"{len(completions)}, e.g. row {empty[0]}. An answer that says nothing is the end token alone."
            )
        if "logprobs" in output:  # TRL says so where it is not
            call = "PPOTrainer(rollout_func=…)"
            output = output | {"logprobs": read_log_probs(output["logprobs"], completions, call=call)}
        return output

    return checked


def check_sampling(
    model: str | PreTrainedModel | PeftModel, args: PPOConfig, quantization_config: BitsAndBytesConfig | None
) -> None:
    """Raise a ValueError for a quantised base that vLLM would have to follow: TRL sends it the packed weights."""
    bits = _bits(model, args, quantization_config) if args.use_vllm else None
    if bits:
        raise ValueError(
            f"PPOTrainer(model=…) in {bits} bits with use_vllm=True: vLLM would be sent weights that it cannot read, or that an "
            "adapter was rounded into. Give generator=VLLMGenerator(), which hands vLLM the adapter alone, as RAFT and ReST can; "
            "sample with use_vllm=False, or load the base in bfloat16."
        )


def _bits(model: str | PreTrainedModel | PeftModel, args: PPOConfig, given: BitsAndBytesConfig | None) -> int | None:
    """8 or 4 for a base that is loaded so, or will be."""
    if not isinstance(model, str):
        return loaded_bits(under_adapter(model))
    given = given or (args.model_init_kwargs or {}).get("quantization_config")
    config = given or getattr(AutoConfig.from_pretrained(model), "quantization_config", None) or {}
    settings = config if isinstance(config, dict) else config.to_dict()
    return next((bits for bits in (8, 4) if settings.get(f"load_in_{bits}bit")), None)
