"""Checks of what `PPOTrainer` is given to start from, made before any token is sampled."""

import copy
from collections.abc import Callable, Sequence

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftModel
from transformers import PreTrainedModel

from trl_ext.ppo.engine_checks import refuse_early
from trl_ext.ppo.ppo_config import ADAPTER_RATE, LEARNING_RATE, PPOConfig
from trl_ext.rewards.reward_callables import Reward
from trl_ext.rewards.reward_columns import check_reward_columns, holders_in
from trl_ext.sequences.prompt_rows import check_prompts, lacks_prompts, one_split, read_prompts
from trl_ext.sequences.template_check import check_template_is_asked
from trl_ext.trainer_kit.trainer_input import check_decoder, given_or_default, refuse_scheduler

Rows = Dataset | IterableDataset
EvalRows = Rows | DatasetDict | IterableDatasetDict | dict[str, Rows]


def checked_args(
    args: PPOConfig | None,
    model: str | PreTrainedModel | PeftModel,
    optimizers: tuple,
    others: dict,
    *,
    has_adapter: bool,
) -> PPOConfig:
    """The config with its learning rate resolved, or a ValueError for what PPO cannot take.

    Args:
        args, model, optimizers, others: As given to `PPOTrainer`.
        has_adapter: Whether an adapter is trained, rather than all weights.
    """
    for name in ("tools", "environment_factory"):
        if others.get(name):
            raise ValueError(f"PPOTrainer({name}=…): tools and environments are not supported. Use TRL's GRPOTrainer.")
    why = "the scheduler does not know the critic's weights, which join the optimizer"
    refuse_scheduler(optimizers, trainer="PPOTrainer", why=why)
    refuse_early(args)  # while there are whole weights
    args = given_or_default(args, PPOConfig, model, method="PPO")
    if not isinstance(args, PPOConfig):
        raise ValueError(
            f"PPOTrainer(args={type(args).__name__}(…)): expected a PPOConfig, which has KL in the reward and a critic. "
            "Write PPOConfig in its place; the names that both have keep their meaning."
        )
    if args.learning_rate is None:
        args = copy.copy(args)
        args.learning_rate = ADAPTER_RATE if has_adapter else LEARNING_RATE
    return args


def check_policy(model: PreTrainedModel | PeftModel, *, sees_images: bool) -> None:
    """Raise a ValueError for an architecture that PPO cannot train."""
    check_decoder(model, sees_images=sees_images, trainer="PPOTrainer")


def check_value_model(value_model: object, rewards: Reward | Sequence[Reward] | None, args: PPOConfig) -> None:
    """Raise a ValueError if one module is both critic and reward (training the one would move the other), or if its loss
    is asked to reach the policy.
    """
    if value_model is not None and not args.detach_critic:
        raise ValueError(
            "PPOTrainer(value_model=…) with PPOConfig(detach_critic=False): a value model has a trunk of its own, so no "
            "value loss could reach the policy's. Leave one of the two out."
        )
    for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
        modules = [reward, *(holder.held_model() for holder in holders_in(reward))]
        if not isinstance(value_model, str | None) and any(module is value_model for module in modules):
            raise ValueError(  # a path is loaded anew
                f"PPOTrainer(value_model={type(value_model).__name__}): it is also one of reward_funcs, and training it "
                "would change the scores. Give its path, or copy.deepcopy(model)."
            )


def named_rows(train: Rows | None, evaluation: EvalRows | None) -> dict[str, Rows | None]:
    """Each data set by the argument that it came in."""
    several = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    return {"train_dataset": train} | {f"eval_dataset{key and f'[{key!r}]'}": rows for key, rows in several.items()}


def check_columns(rewards: list[Callable], train: Rows | None, evaluation: EvalRows | None) -> None:
    """Raise a ValueError for a reward that would find a column missing, or unusable, after the first rollout."""
    for name, rows in named_rows(train, evaluation).items():
        if isinstance(rows, Dataset | IterableDataset):
            check_reward_columns(rewards, rows, call=f"PPOTrainer({name}=…)")


def check_text(dataset: Dataset | None, args: PPOConfig) -> None:
    """Raise a ValueError for text without a weight, or a weight without text."""
    if args.ptx_coef and dataset is None:
        raise ValueError(
            f"PPOTrainer(ptx_dataset=None) with ptx_coef={args.ptx_coef}: expected a data set of text to mix in. Give one, "
            "or leave ptx_coef at 0."
        )
    if dataset is not None and not args.ptx_coef:
        raise ValueError(
            "PPOTrainer(ptx_dataset=…) with ptx_coef=0: the text would not be learned. Set ptx_coef, e.g. to 0.1, or leave "
            "the data set out."
        )


def check_template_options(datasets: dict[str, Rows | None], text: Dataset | None, args: PPOConfig) -> None:
    """Raise a ValueError for options of the chat template where neither prompts nor the text beside are messages."""
    rows = [next(iter(rows), {}) for rows in (*datasets.values(), text) if isinstance(rows, Dataset | IterableDataset)]
    said = [row[name] for row in rows for name in ("prompt", "messages") if row.get(name) is not None]
    check_template_is_asked(said, args.chat_template_kwargs, call="PPOTrainer")


def read_data(train: Rows | None, evaluation: EvalRows | None, args: PPOConfig) -> tuple[Rows | None, EvalRows | None]:
    """Both as they are read, and a ValueError unless training has prompts enough for one batch of rollouts."""
    one_split(train, call="PPOTrainer(train_dataset=…)")
    train, evaluation = _read_rows(train, "train_dataset"), _read_rows(evaluation, "eval_dataset")
    needed = args.generation_batch_size // args.num_generations
    if isinstance(train, Dataset) and len(train) < needed:  # a stream's length is unknown
        raise ValueError(
            f"PPOTrainer(train_dataset=…) has {len(train)} prompts, but one batch of rollouts takes {needed}, so no step "
            "could be made. Lower per_device_train_batch_size or gradient_accumulation_steps, or add prompts."
        )
    return train, evaluation


def _read_rows(rows: EvalRows | None, name: str) -> EvalRows | None:
    """The rows, whose prompts are known to be prompts; of several evaluation sets, each.

    Of a stream only the first row is looked at, and each batch when it comes. What is no data set, GRPOTrainer refuses.

    Args:
        rows: As given to `PPOTrainer`.
        name: Under which argument.
    """
    if isinstance(rows, dict):
        return {key: _read_rows(split, f"{name}[{key!r}]") for key, split in rows.items()}
    if not isinstance(rows, Dataset | IterableDataset):
        return rows
    call = f"PPOTrainer({name}=…)"
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{call} is empty: expected rows with a column `prompt`.")
    if "prompt" not in first:
        raise lacks_prompts(list(first), call=call)
    if {"image", "images"} & set(first):
        raise ValueError(f"{call} has a column of images, which are not supported. Drop it, or use TRL's GRPOTrainer.")
    if isinstance(rows, Dataset):
        return read_prompts(rows, call=call)
    check_prompts([first["prompt"]], call=call)
    return rows
