"""The frozen vocabulary head r′: how the pretrained model read tokens off its last hidden state.

A sequence-classification model has no such head. It is the embedding where the two are tied, and is read from the
pretrained checkpoint where they are not.
"""

import dataclasses
import warnings
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.reward_modeling.causal_twin import causal_twin, is_tied, logit_scale
from trl_ext.trainer_kit.engine_words import CUT_HEAD
from trl_ext.trainer_kit.loading import quiet_loading
from trl_ext.trainer_kit.passes import under_adapter

_TRAINER = "ImitationRewardTrainer"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REMEDY = "Pass imitation_head=<the pretrained checkpoint, or its head as a module>, or set imitation_coef=0."


@dataclass(frozen=True)
class VocabularyHead:
    """logits = scale · (W h + b), never trained.

    Args:
        weight: W, `(V, H)`. A parameter of the model where it is the embedding, whose moves it then follows.
        bias: b, `(V,)`, or None.
        scale: Factor that the architecture applies to its logits (Granite, Cohere), 1 for most.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0

    @property
    def size(self) -> int:
        """V: the tokens that it knows."""
        return self.weight.size(0)

    @property
    def is_embedding(self) -> bool:
        """Whether W is a parameter of the model rather than a tensor of its own."""
        return isinstance(self.weight, nn.Parameter)

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """W and b on `device`, without gradient, in another dtype if one is given."""
        weight = self.weight.detach().to(device=device, dtype=dtype)
        return weight, None if self.bias is None else self.bias.detach().to(weight)


def imitation_head_of(
    model: PreTrainedModel | PeftModel,
    given: nn.Module | str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    revision: str | None,
    is_cut: bool,
) -> VocabularyHead:
    """The vocabulary head that a trainer imitates with, where its `score` head is; warns of tokens that it does not know.

    Args:
        model, given, revision: As in `vocabulary_head`.
        tokenizer: Of the pairs.
        is_cut: Whether the model's parameters are spread over processes.

    Raises:
        ValueError: If there is none, or it is the embedding of a model that is cut.
    """
    head = vocabulary_head(model, given, revision=revision)
    if head.is_embedding and is_cut:
        origin = model.config._name_or_path
        copied = repr(origin) if origin else "copy.deepcopy(model.get_input_embeddings())"
        raise ValueError(
            f"ImitationRewardTrainer: the vocabulary head is the embedding, which {CUT_HEAD}. "
            f"Pass imitation_head={copied} to read with a frozen copy of it."
        )
    if not head.is_embedding:
        weight, bias = head.on(next(under_adapter(model).score.parameters()).device)
        head = dataclasses.replace(head, weight=weight, bias=bias)
    unknown = [t for t, i in tokenizer.get_vocab().items() if i >= head.size and t != tokenizer.pad_token]
    if unknown:
        warnings.warn(
            f"ImitationRewardTrainer: the pretrained vocabulary head has no row for {len(unknown)} tokens of the "
            f"tokenizer, which are not imitated: {sorted(unknown)[:5]}… Pass an `imitation_head` that knows them.",
            stacklevel=4,  # who made the trainer
        )
    return head


def vocabulary_head(
    model: PreTrainedModel | PeftModel, given: nn.Module | str | None = None, *, revision: str | None = None
) -> VocabularyHead:
    """The vocabulary head that belongs to a reward model.

    Args:
        model: A sequence-classification model, with or without adapters.
        given: A linear layer or embedding to use as head, or a checkpoint to read it from. None: the embedding if
            the architecture ties the two, else the head of the checkpoint that the model was loaded from.
        revision: Of that checkpoint on the hub; None: the newest.

    Raises:
        ValueError: If there is none, or it cannot be used.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    twin = causal_twin(base)
    width, scale = twin.get_output_embeddings().in_features, logit_scale(twin)
    if isinstance(given, nn.Module):
        weight, bias = _parts(given)
    elif given is None and is_tied(twin):
        weight, bias = _frozen_embedding(base).weight, None
    else:
        weight, bias = _load(given, None) if given else _load(_origin_of(base), revision)
    _check_weight(weight, width, given)
    return VocabularyHead(weight, bias, scale)


def _frozen_embedding(base: PreTrainedModel) -> nn.Module:
    """The embedding as it was pretrained: below whatever an adapter put in its place."""
    embedding = base.get_input_embeddings()
    while isinstance(embedding, AuxiliaryTrainingWrapper | BaseTunerLayer):
        wrapped = isinstance(embedding, AuxiliaryTrainingWrapper)
        embedding = embedding.original_module if wrapped else embedding.get_base_layer()
    return embedding


def _parts(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise ValueError(
            f"{_TRAINER}(imitation_head={type(module).__name__}(…)): expected a linear layer or an embedding with one "
            "row per token, such as `causal_lm.get_output_embeddings()`, or the path of a checkpoint."
        )
    bias = module.bias if isinstance(module, nn.Linear) else None
    return module.weight.detach(), bias


def _origin_of(base: PreTrainedModel) -> str:
    """The checkpoint that a model was loaded from."""
    if not base.config._name_or_path:
        raise ValueError(
            f"{_TRAINER}(model={type(base).__name__}): its embeddings are not tied and it was not loaded from a "
            f"checkpoint, so there is no vocabulary head to imitate with. {_REMEDY}"
        )
    return base.config._name_or_path


def _load(checkpoint: str, revision: str | None) -> tuple[Tensor, Tensor | None]:
    """The head of a checkpoint, in its own dtype; the layers but one are left on disk."""
    try:
        with quiet_loading():  # that most is left on disk is meant
            twin, report = AutoModelForCausalLM.from_pretrained(
                checkpoint, num_hidden_layers=1, dtype="auto", revision=revision, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{_TRAINER}: cannot read a vocabulary head from {checkpoint!r} ({reason}). {_REMEDY}"
        ) from error
    head = twin.get_output_embeddings()
    names = {f"{name}.weight" for name, module in twin.named_modules() if module is head}
    if names & set(report["missing_keys"]):
        raise ValueError(
            f"{_TRAINER}: the checkpoint {checkpoint!r} has no vocabulary head ({', '.join(names)} is missing), as "
            f"reward models are saved without one. {_REMEDY}"
        )
    return head.weight.detach(), None if head.bias is None else head.bias.detach()


def _check_weight(weight: Tensor, width: int, given: nn.Module | str | None) -> None:
    if weight.dtype not in DTYPES or weight.shape[1:] != (width,):
        raise ValueError(
            f"{_TRAINER}(imitation_head={given if isinstance(given, str) else type(given).__name__}): expected a "
            f"floating point weight of shape (vocabulary, {width}), got {weight.dtype} {tuple(weight.shape)}. Take "
            "the head of the checkpoint that the reward model was trained from, not quantised."
        )
