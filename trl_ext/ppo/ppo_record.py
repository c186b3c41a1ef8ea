"""What decides a run of PPO besides its config, and what of it all cannot change on the way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from trl import GRPOTrainer

from trl_ext.generation.given_generator import generator_record
from trl_ext.generation.rollouts import GeneratorRollouts
from trl_ext.ppo.rollout_state import BATCHING
from trl_ext.rewards.checked_reward import reward_name
from trl_ext.rewards.reward_fingerprints import reward_settings
from trl_ext.sequences.texts import last_user_text, text_of
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.fingerprints import data_fingerprint

FIXED = dict.fromkeys((*BATCHING, "gradient_accumulation_steps"), "rollouts and the order of prompts are cut to it")
FIXED |= {"value_model": "the critic goes on from its own weights"}


def ppo_record(trainer: GRPOTrainer, text: Dataset | None) -> dict[str, Any]:
    """Data, tokenizer, rewards, and who samples; `text`: the `ptx_dataset`."""
    return {
        "train_dataset": data_fingerprint(trainer.train_dataset),
        "ptx_dataset": data_fingerprint(text),
        "tokenizer": tokenizer_fingerprint(trainer._tokenizer),
        "reward_funcs": [reward.__name__ for reward in trainer.reward_funcs],
        "reward_settings": reward_settings(trainer.reward_funcs),
        "generator": _sampler_record(trainer.rollout_func),
    }


def _sampler_record(rollout_func: Callable | None) -> dict[str, Any] | str | None:
    """None: TRL itself."""
    if isinstance(rollout_func, GeneratorRollouts):
        return generator_record(rollout_func.generator)
    return None if rollout_func is None else reward_name(rollout_func)


def sampler_name(trainer: GRPOTrainer) -> str:
    """Who samples: a generator or a function by its name, an object by its class."""
    if isinstance(trainer.rollout_func, GeneratorRollouts):
        return trainer.rollout_func.generator.name
    if trainer.rollout_func is not None:
        return reward_name(trainer.rollout_func)
    return "vLLM" if trainer.use_vllm else "the policy"


def samples_of(table: Mapping[str, Any], weights: Sequence[float]) -> list[dict[str, Any]]:
    """The last rollouts that a GRPOTrainer keeps for its table of completions, each with its rewards and their weighted sum."""
    names, columns = list(table["rewards"]), list(table["rewards"].values())
    return [
        {
            "prompt": last_user_text(prompt),
            "completion": text_of(completion),
            "rewards": dict(zip(names, scores, strict=True)),
            "score": weighted_sum(scores, weights),
        }
        for prompt, completion, *scores in zip(table["prompt"], table["completion"], *columns, strict=False)
    ]


def weighted_sum(scores: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Σ weight · score of the rewards that gave one; None where none did.

    >>> weighted_sum([1.0, None, 4.0], [1.0, 9.0, 0.5]), weighted_sum([float("nan")], [1.0])
    (3.0, None)
    """
    given = [
        (score, weight) for score, weight in zip(scores, weights, strict=True) if score is not None and score == score
    ]
    return sum(score * weight for score, weight in given) if given else None
