"""Builds the value function that `PPOTrainer(value_model=…)` asks for, and checks that it fits the policy."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.ppo.critic import Critic, ValueHead, ValueModel
from trl_ext.ppo.policy import turn_off_dropout
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.rewards.reward_models import load_scorer
from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.sequences.vocabulary import check_vocabulary
from trl_ext.trainer_kit.adapters import keep_4_bit_layout
from trl_ext.trainer_kit.passes import seen_in, under_adapter
from trl_ext.trainer_kit.trl_versions import recompute_activations


def make_critic(
    value_model: str | PreTrainedModel | PeftModel | None,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    accelerator: Accelerator,
    *,
    sharded: bool = False,
) -> Critic:
    """The `value_function` and what trains it: a head at ten times the policy's learning rate, unless it is told its own.

    Where an engine shards the policy, the critic is inside it.
    """
    rate = args.learning_rate * (10 if value_model is None else 1)
    if args.critic_learning_rate is not None:
        rate = args.critic_learning_rate
    module = value_function(value_model, policy, tokenizer, args)
    keep_4_bit_layout(module)
    return Critic(module, accelerator, learning_rate=rate, inside=policy if sharded else None)


@contextmanager
def values_beside(
    critic: Critic, policy: PreTrainedModel | PeftModel, *, detach: bool
) -> Iterator[Callable[[dict[str, Tensor], int], Tensor]]:
    """Watch a pass of the policy inside the block, so that the critic's of the same tokens need no other where it is a head.

    Args:
        critic: The critic.
        policy: The policy.
        detach: Whether the value loss stops at the policy's hidden states.

    Yields:
        A function to call after the pass: from `input_ids` and `attention_mask`, `(B, P + T)`, and T to V, `(B, T)`.
    """
    trunk = under_adapter(policy).get_decoder()  # OPT does not call its base_model
    watch = seen_in(trunk, lambda args, output: output.last_hidden_state) if critic.reads_policy else nullcontext()
    with watch as states:

        def values_of(tokens: dict[str, Tensor], length: int) -> Tensor:
            if not critic.reads_policy:
                return critic.values(length, **tokens)
            return critic.values(length, **tokens, hidden_states=states[-1].detach() if detach else states[-1])

        yield values_of


def value_function(
    value_model: str | PreTrainedModel | PeftModel | None,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> ValueHead | ValueModel:
    """A linear head on the policy, or a model of its own with the policy's vocabulary.

    Args:
        value_model: None for a head; else a one-label sequence-classification model, or the path of a reward model,
            an adapter of one, or a causal LM (which gets a new head of zeros).
        policy: The model to be trained.
        tokenizer: The policy's.
        args: The trainer's config: whether a model of its own recomputes activations in the backward pass, and how.

    Raises:
        ValueError: If the model has more than one label, another vocabulary or tokenizer than the policy, nothing to
            train, float16 to train, or no weights in memory.
    """
    if value_model is None:
        return ValueHead(policy.config.get_text_config().hidden_size)
    model = value_model
    if isinstance(value_model, str):
        model = load_scorer(value_model, new_head=True, trainable=True)
    if model.config.num_labels != 1:
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): it has {model.config.num_labels} labels; a value is one "
            "number. Load it with num_labels=1."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): all of it is frozen, so the critic could not learn. Load an "
            "adapter with PeftModel.from_pretrained(…, is_trainable=True), or give its path."
        )
    _check_tensors(model)
    _check_vocabulary(model, value_model, policy, tokenizer)
    if isinstance(policy, PeftModel) and not isinstance(model, PeftModel):
        _warn_of_size(model)
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:  # it is asked for batches
        text_config.pad_token_id = tokenizer.pad_token_id
    turn_off_dropout(model)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # a frozen base under an adapter has none
        recompute_activations(under_adapter(model), args.gradient_checkpointing_kwargs)
    return ValueModel(model.train())


def _warn_of_size(model: PreTrainedModel) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    warnings.warn(
        f"PPOTrainer(value_model={_name(model)!r}): all of its {weights:,} weights are trained beside an adapter, with "
        "gradients and optimizer state for each. Where memory is short, give one with an adapter of its own: "
        "SharedBase(…).value_model(), peft.get_peft_model(value_model, LoraConfig(…)), or None for a head.",
        stacklevel=5,
    )


def _check_tensors(model: PreTrainedModel | PeftModel) -> None:
    """What is trained must have weights, on whatever device, that a small step can move; the rest may be in any dtype."""
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): {len(absent)} of its tensors, e.g. {absent[0]!r}, are on the meta "
            "device, so it has no weights. Load it with from_pretrained, without offloading to disk."
        )
    half = [name for name, parameter in tensors.items() if parameter.dtype == torch.float16]
    if half:
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): {len(half)} of its trained tensors, e.g. {half[0]!r}, are in "
            "float16, in which neither steps nor gradients of PPO fit. Load it with dtype=torch.float32, or train an "
            "adapter: SharedBase(…).value_model() keeps it and its head in float32 on a base in 16, 8 or 4 bits."
        )
    coarse = [name for name, parameter in tensors.items() if parameter.dtype == torch.bfloat16]
    if coarse:
        warnings.warn(
            f"PPOTrainer(value_model={_name(model)!r}): {len(coarse)} of its trained tensors, e.g. {coarse[0]!r}, are in "
            "bfloat16, which rounds away steps below about 1/500 of a weight. Load it with dtype=torch.float32, raise "
            "critic_learning_rate, or train an adapter with SharedBase(…).value_model().",
            stacklevel=5,
        )


def _check_vocabulary(
    model: PreTrainedModel,
    given: str | PreTrainedModel,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """By the tokenizers where both are at hand (embeddings of one family may be padded differently), else by size.

    The policy's may have grown since, if the model's embedding has too.
    """
    size, expected = (m.config.get_text_config().vocab_size for m in (model, policy))
    beside = [given] if isinstance(given, str) else []
    other = tokenizer_at(*beside, model.config._name_or_path)
    known = set() if other is None else other.get_vocab().items()
    if (other is None and size != expected) or not known <= tokenizer.get_vocab().items():
        came = f"a vocabulary of {size} tokens" if other is None else "another tokenizer"
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): it has {came}, but reads the policy's own tokens (vocabulary of "
            f"{expected}). Use a model of the policy's family, or value_model=None for a head on the policy."
        )
    call = f"PPOTrainer(value_model={_name(model)!r})"
    check_vocabulary(tokenizer, model.config, call=call, pad_token_id=tokenizer.pad_token_id)


def _name(model: PreTrainedModel) -> str:
    return model.config._name_or_path or type(model).__name__
