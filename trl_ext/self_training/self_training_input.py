"""Checks of what a self-training trainer is given to start from, made before any token is sampled."""

import copy

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import get_config_model_id

from trl_ext.generation.protocol import OWN_GENERATORS, Generator, Policy
from trl_ext.self_training.schedule import Schedule
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.sequences.windows import check_windows


def checked_args(
    args: SelfTrainingConfig | None,
    model: str | PreTrainedModel | PeftModel,
    others: dict,
    *,
    trainer: str,
    config: type[SelfTrainingConfig] = SelfTrainingConfig,
) -> SelfTrainingConfig:
    """The config, or a default one, or a ValueError for what the trainer cannot take.

    Args:
        args, model, others: As given to the trainer.
        trainer: Its name, for messages.
        config: The kind of config that it takes.
    """
    for name in ("formatting_func", "data_collator", "compute_loss_func", "compute_metrics"):
        if others.get(name) is not None:
            raise ValueError(
                f"{trainer}({name}=…): rows are made from samples, and the loss is the method's. Leave it out."
            )
    if (others.get("optimizers") or (None, None))[1] is not None:
        raise ValueError(
            f"{trainer}(optimizers=(…, scheduler)): the learning rate falls within each Improve, which a scheduler of "
            "your own does not know. Give the optimizer alone, (optimizer, None); lr_scheduler_type makes the schedule."
        )
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = config(f"{name.split('/')[-1]}-{trainer.removesuffix('Trainer')}")
    if not isinstance(args, config):
        raise ValueError(
            f"{trainer}(args={type(args).__name__}(…)): expected a {config.__name__}. Write that instead."
        )
    if args.num_train_epochs not in (3.0, args.improves):  # SFTConfig's default, or another trainer's copy
        raise ValueError(
            f"{trainer}, num_train_epochs={args.num_train_epochs}: the run's length is num_stages × Improves per stage; "
            "passes within an Improve are `improve_epochs`. Leave it out."
        )
    args = copy.copy(args)
    args.num_train_epochs = float(args.improves)  # an epoch of Trainer is an Improve
    if args.deepspeed or args.fsdp:
        raise ValueError(
            f"{trainer} runs on one device or with data parallelism; DeepSpeed and FSDP shard the model that is "
            "sampled from. Launch it without them."
        )
    return args


def check_dataset(dataset: Dataset | None, *, trainer: str, name: str = "train_dataset") -> None:
    """Raise a ValueError unless the data set has rows, and prompts in them."""
    call = f"{trainer}({name}=…)"
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{call}: expected a datasets.Dataset with a column `prompt`, got {type(dataset).__name__}. A stream or a "
            "list becomes one with Dataset.from_list(list(rows))."
        )
    if "prompt" not in dataset.column_names:
        raise ValueError(f"{call} has columns {dataset.column_names}: expected a column `prompt`. Rename yours.")
    if not len(dataset):
        raise ValueError(f"{call} is empty: expected at least one prompt.")
    images = {"image", "images"} & set(dataset.column_names)
    if images:
        raise ValueError(f"{call} has a column {images.pop()!r}: images are not supported. Drop it.")
    for row, prompt in enumerate(dataset["prompt"]):
        if not prompt or not isinstance(prompt, str | list):
            raise ValueError(f"{call}: the prompt of row {row} is {prompt!r}: expected text or messages. Drop it.")


def check_eval_dataset(dataset: Dataset | None, args: SelfTrainingConfig, *, trainer: str) -> None:
    """Raise a ValueError for held-out prompts that are missing or unusable."""
    if dataset is not None:
        check_dataset(dataset, trainer=trainer, name="eval_dataset")
        if "completion" in dataset.column_names and None in dataset["completion"]:
            raise ValueError(
                f"{trainer}(eval_dataset=…): the completion of row {list(dataset['completion']).index(None)} is None: "
                "expected a reference answer in each row, or no such column."
            )
    elif args.eval_strategy != "no":
        raise ValueError(
            f"{trainer}(eval_dataset=None) with eval_strategy={args.eval_strategy.value!r}: expected held-out prompts."
        )


def check_prompt_lengths(dataset: Dataset | None, policy: Policy, *, room: int, trainer: str, name: str) -> None:
    """Raise a ValueError for the first prompt that, with `room` tokens of completion, would not fit the model's window.

    Before the run, since a run that has begun may not go on with other prompts.
    """
    if dataset is not None:
        check_windows(
            dataset["prompt"],
            policy.tokenizer,
            policy.model.config,
            max_completion_length=room,
            call=f"{trainer}({name}=…)",
            template_kwargs=policy.chat_template_kwargs,
        )


def check_options(args: SelfTrainingConfig, schedule: Schedule, generator: Generator, *, trainer: str) -> None:
    """Raise a ValueError for options that would do nothing, or the wrong thing, together."""
    if args.importance_clip is not None and generator.name not in OWN_GENERATORS:
        raise ValueError(
            f"{trainer}(generator={generator.name!r}) with importance_clip={args.importance_clip}: its samples are not "
            "the policy's, so they have no importance ratio. Leave one of them out."
        )
    for name in ("keep_best", "improve_patience"):
        if getattr(args, name) and args.eval_steps >= schedule.steps_per_improve:
            raise ValueError(
                f"{trainer}, {name}={getattr(args, name)}, eval_steps={args.eval_steps}: an Improve has "
                f"{schedule.steps_per_improve} steps, so it would not be evaluated before its end. Lower eval_steps."
            )


def check_model(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, trainer: str) -> None:
    """Raise a ValueError for an architecture or tokenizer that cannot be sampled and trained here."""
    if model.config.is_encoder_decoder or not isinstance(tokenizer, PreTrainedTokenizerBase):
        kind = "an encoder–decoder" if model.config.is_encoder_decoder else "a vision-language"
        raise ValueError(f"{trainer}(model=…): {kind} model is not supported. Give a decoder of text.")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{trainer}(processing_class=…): the tokenizer has no end token, so no completion could end. Set "
            "`tokenizer.eos_token`."
        )
