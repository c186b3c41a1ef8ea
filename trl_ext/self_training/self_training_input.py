"""Checks of what a self-training trainer is given to start from, made before any token is sampled."""

import copy
import warnings
from typing import TypeVar

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.generation.given_generator import check_policy
from trl_ext.generation.protocol import OWN_GENERATORS
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.self_training.grow import Grower
from trl_ext.self_training.self_training_config import ADAPTER_RATE, LEARNING_RATE, SelfTrainingConfig
from trl_ext.self_training.self_training_engines import REFUSAL
from trl_ext.self_training.self_training_rules import EPOCHS
from trl_ext.sequences.prompt_rows import completions_given, read_dataset
from trl_ext.sequences.template_check import check_template_is_asked
from trl_ext.sequences.vocabulary import check_vocabulary
from trl_ext.sequences.windows import check_all_windows
from trl_ext.trainer_kit.adapters import trains_adapter
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.sharding import but_fsdp2, engine_asked, refuse_engine
from trl_ext.trainer_kit.trainer_input import check_decoder, check_offloading, given_or_default, refuse_scheduler

REFUSED = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func")
Config = TypeVar("Config", bound=SelfTrainingConfig)


def checked_args(
    args: Config | None,
    model: str | PreTrainedModel | PeftModel,
    peft_config: PeftConfig | None,
    *,
    trainer: str,
    config: type[Config],
) -> Config:
    """The config as the trainer needs it, or a default one; a ValueError if it is not of the kind `config`, or unusable."""
    args = given_or_default(args, config, model, method=trainer.removesuffix("Trainer"))
    if not isinstance(args, config):
        raise ValueError(
            f"{trainer}(args={type(args).__name__}(…)): expected a {config.__name__}. Write that instead."
        )
    if args.num_train_epochs not in (3.0, args.improves):  # SFTConfig's default, or another trainer's copy
        raise ValueError(f"{trainer}, num_train_epochs={args.num_train_epochs}: {EPOCHS}. Leave it out.")
    args = copy.copy(args)
    args.num_train_epochs = float(args.improves)  # an epoch of Trainer is an Improve
    if args.learning_rate is None:
        args.learning_rate = _default_rate(trains_adapter(model, peft_config), trainer)
    refuse_engine(but_fsdp2(engine_asked(args)), trainer=trainer, **REFUSAL)  # before any weights are cut
    check_offloading(args)
    return args


def _default_rate(has_adapter: bool, trainer: str) -> float:
    if not has_adapter:
        return LEARNING_RATE
    warnings.warn(
        f"{trainer}, learning_rate=None: with an adapter it is now {ADAPTER_RATE}, and was {LEARNING_RATE}. Give it, to "
        "choose.",
        FutureWarning,
        stacklevel=4,
    )
    return ADAPTER_RATE


def check_given(reward_funcs: object, optimizers: tuple, refused: dict[str, object], *, trainer: str) -> None:
    """Raise an error without rewards, and for what SFTTrainer takes but a self-training trainer cannot."""
    for name, given in refused.items():
        if name not in REFUSED:
            raise TypeError(f"{trainer}.__init__() got an unexpected keyword argument {name!r}")
        if given is not None:
            raise ValueError(
                f"{trainer}({name}=…): rows are made from samples, and the loss is the method's. Leave it out."
            )
    why = "the learning rate falls within each Improve, which a scheduler of your own does not know"
    refuse_scheduler(optimizers, trainer=trainer, why=why)
    if reward_funcs in (None, [], ()):
        raise ValueError(f"{trainer}(reward_funcs={reward_funcs}): expected a reward, or a list of them.")


def read_eval_dataset(dataset: Dataset | None, args: SelfTrainingConfig, *, trainer: str) -> Dataset | None:
    """The held-out prompts, if there are any, once they are known to be usable."""
    if dataset is not None:
        return read_dataset(dataset, trainer=trainer, name="eval_dataset", completions=True)
    if args.eval_strategy != "no":
        raise ValueError(
            f"{trainer}(eval_dataset=None) with eval_strategy={args.eval_strategy.value!r}: expected held-out prompts."
        )
    return None


def check_run(grower: Grower, eval_dataset: Dataset | None, *, trainer: str) -> None:
    """Raise a ValueError for options that would do nothing, or the wrong thing, together, and for prompts that are too long.

    Before the run, since a run that has begun may not go on with other prompts.
    """
    args, policy, steps = grower.args, grower.policy, grower.schedule.steps_per_improve
    check_policy(grower.generator, policy, args.sampling(stage=0), grower.dataset)
    if args.importance_clip is not None and grower.generator.name not in OWN_GENERATORS:
        raise ValueError(
            f"{trainer}(generator={grower.generator.name!r}) with importance_clip={args.importance_clip}: its samples are "
            "not the policy's, so they have no importance ratio. Leave one of them out."
        )
    for name in ("keep_best", "improve_patience"):
        if getattr(args, name) and args.eval_steps >= steps:
            raise ValueError(
                f"{trainer}, {name}={getattr(args, name)}, eval_steps={args.eval_steps}: an Improve has {steps} steps, "
                "so it would not be evaluated before its end. Lower eval_steps."
            )
    if args.improve_patience and args.eval_steps * args.improve_patience + 1 >= steps:
        raise ValueError(
            f"{trainer}, improve_patience={args.improve_patience}, eval_steps={args.eval_steps}: an Improve has {steps} steps, "
            "so it would be over before patience is. Lower either."
        )
    if args.mix_dataset and defaults_of(args)["mix_dataset"] is False:
        _check_mixed(grower.prompts.known, trainer)
    firsts = [rows["prompt"][0] for rows in (grower.prompts.known, eval_dataset) if rows is not None]
    check_template_is_asked(firsts, args.chat_template_kwargs, call=trainer)
    if eval_dataset is None:  # whose prompts the policy would complete itself
        _refuse_idle_sampling(grower, trainer)
    for name, dataset in (("train_dataset", grower.prompts.known), ("eval_dataset", eval_dataset)):
        if dataset is not None:
            check_rows(grower, dataset, call=f"{trainer}({name}=…)")


def check_rows(grower: Grower, dataset: Dataset, *, call: str) -> None:
    """Raise a ValueError for rows that a reward cannot read, or whose prompts are too long for the policy."""
    check_reward_columns(grower.scorer.rewards, dataset, call=call)
    check_all_windows(
        dataset,
        grower.policy.tokenizer,
        grower.policy.model.config,
        max_completion_length=grower.args.max_completion_length,
        call=call,
        template_kwargs=grower.policy.chat_template_kwargs,
    )


def _check_mixed(dataset: Dataset, trainer: str) -> None:
    """Raise a ValueError for a data set without an answer to mix in."""
    there = "completion" in dataset.column_names
    if not there or not completions_given(dataset, call=f"{trainer}(train_dataset=…)"):
        what = "its column `completion` is None in all rows" if there else "it has no column `completion` to mix in"
        raise ValueError(
            f"{trainer}(train_dataset=…) with mix_dataset=True: {what}. Add {'answers' if there else 'one'}, or leave mix_dataset "
            "out."
        )


def _refuse_idle_sampling(grower: Grower, trainer: str) -> None:
    """Raise a ValueError for an option of sampling that was set, and that the generator does not read."""
    args, name, defaults = grower.args, grower.generator.name, defaults_of(grower.args)
    idle = () if name == "transformers" else ("generation_batch_size",)
    idle += ("temperature", "top_p", "top_k", "min_p", "repetition_penalty") if name.startswith("file:") else ()
    for option in idle:
        if getattr(args, option) not in (defaults[option], *args.unset.get(option, ())):
            raise ValueError(
                f"{trainer}(generator={name!r}), {option}={getattr(args, option)}: that generator does not read it. Leave it "
                "out."
            )


def check_model(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, trainer: str) -> None:
    """Raise a ValueError for an architecture or a tokenizer that cannot be had here."""
    check_decoder(model, sees_images=not isinstance(tokenizer, PreTrainedTokenizerBase), trainer=trainer)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{trainer}(processing_class=…): the tokenizer has no end token, so no completion could end. Set "
            "`tokenizer.eos_token`."
        )
    call = f"{trainer}(model=…)"
    check_vocabulary(tokenizer, model.config, call=call, pad_token_id=tokenizer.pad_token_id)
