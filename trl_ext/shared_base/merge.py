"""From an adapter on a quantised base to a model that can be served: dequantise first, then merge."""

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import prompt_ids
from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.sequences.turn_end import end_with_turn
from trl_ext.shared_base.adapter_files import saved_adapter
from trl_ext.shared_base.shared_tree import quantised_linears, tree_over
from trl_ext.trainer_kit.card_files import CardFacts, is_strangers, training_told, write_card
from trl_ext.trainer_kit.device import checked_device, checked_dtype
from trl_ext.trainer_kit.free_disk import check_free_disk
from trl_ext.trainer_kit.loading import loaded_bits
from trl_ext.trainer_kit.own_folders import check_own_folder, mark_folder
from trl_ext.trainer_kit.passes import eval_mode

MARK = "trl_ext_merge.json"  # says of which merge a folder is
FILES = re.compile(
    r"[^.].*\.\w+|additional_chat_templates|Modelfile"
)  # whatever a model and its tokenizer may be saved as
TEXTS = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "Question: why is the sky blue?\nAnswer: air scatters short waves of light more than long ones.",
    "She opened the old box, and inside it lay a letter that nobody had read.",
)
LARGE_KL = 0.05  # nats per token


class Base(Protocol):
    """What is asked of a `SharedBase` here."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Args:
        path: Folder of the merged model and its tokenizer.
        kl: Mean over tokens of KL(adapter on the base ‖ merged), in nats: what quantised arithmetic and the
            merged weights' rounding differ by.
        agreement: Share of tokens at which both find the same next token likeliest.
    """

    path: str
    kl: float
    agreement: float


@torch.no_grad()
def merge_adapter(
    base: "Base",
    adapter: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    texts: tuple[Text, ...] | list[Text] = TEXTS,
) -> Merged:
    """Merge a policy's adapter into a full-precision copy of the base, compare the two, and write the result.

    Merged into 8-bit weights, an adapter's small changes would be rounded away (peft issue 1043). So the weights are
    dequantised first: W = CB · SCB / 127, or NF4's table; then W + α/r · BA. The base itself stays as it is. The merged
    model's generation config also names the token with which the chat template closes an assistant's turn.

    Args:
        base: The base.
        adapter: Folder or hub id of the policy's adapter.
        output_dir: Where a plain transformers checkpoint goes, with the tokenizer beside the adapter, or else the base's:
            a folder without files, or that of the same merge.
        dtype: Of the merged weights; None: that of the base's unquantised ones.
        device: Where it is done; it takes the whole model in `dtype`.
        texts: Text, or messages, on which the adapter's outputs and the merged model's are compared; a mean KL above
            0.05 nats warns.

    Raises:
        ValueError: If output_dir is a file, or holds files that the same merge has not written.
    """
    call, folder = "SharedBase.merge(…)", Path(output_dir)
    run, tokenizer = merge_of(base.name, adapter), tokenizer_at(adapter) or base.tokenizer
    check_own_folder(folder, MARK, run, names=FILES, call=call)
    dtype = base.model.dtype if dtype is None else checked_dtype(dtype, call=f"SharedBase.merge(dtype={dtype!r})")
    device = checked_device(device, call=f"SharedBase.merge(device={str(device)!r})")
    whole = unquantised_copy(base.model, dtype, device)
    merged = saved_adapter(whole, adapter, task=TaskType.CAUSAL_LM, call=call, base=base.name).merge_and_unload(
        safe_merge=True
    )
    difference = compared(base, adapter, merged, texts=texts, path=str(folder))
    if difference.kl > LARGE_KL:
        warnings.warn(
            f"{call}: merged model and adapter on the base differ by {difference.kl:.3f} nats per token and agree on "
            f"{difference.agreement:.0%} of the likeliest tokens. Measure the merged model before you serve it.",
            stacklevel=3,
        )
    end_with_turn(merged, tokenizer, call=call)
    to = f"SharedBase.merge(output_dir={str(folder)!r})"
    check_free_disk(folder, sum(p.nbytes for p in merged.parameters()), call=to)
    mark_folder(folder, MARK, run)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_merged_card(folder, adapter, base=base.name, said=_said(difference, adapter, base))
    return difference


def compared(
    base: "Base",
    adapter: str | os.PathLike,
    merged: PreTrainedModel,
    *,
    texts: tuple[Text, ...] | list[Text] = TEXTS,
    path: str = "",
) -> Merged:
    """How far a merged model, at `path`, is from its adapter on a base."""
    call, tokenizer = "SharedBase.merge(…)", tokenizer_at(adapter) or base.tokenizer
    attached = saved_adapter(tree_over(base.model), adapter, task=TaskType.CAUSAL_LM, call=call, base=base.name)
    return Merged(path, *_difference(attached, merged, tokenizer, texts))


def write_merged_card(folder: Path, run: str | os.PathLike, *, base: str, said: str) -> None:
    """A card beside what was made of a run, with what the run's own card says of how it was trained."""
    if not is_strangers(folder):
        facts = CardFacts(base=base, is_adapter=False, data_name=None, data={}, rewards=(), results={})
        write_card(folder, folder.resolve().name, said, facts, tags=["merged"], behind=training_told(Path(run)))


def _said(difference: Merged, adapter: str | os.PathLike, base: "Base") -> str:
    bits = loaded_bits(base.model.config)
    onto = f"the weights of its base in {bits} bits, dequantised" if bits else "its base"
    return (
        f"The adapter `{Path(adapter).resolve().name}`, merged into {onto}: on {len(TEXTS)} texts {difference.kl:.2g} nats per "
        f"token from the adapter on that base, and {difference.agreement:.1%} of the likeliest tokens are the same."
    )


def merge_of(base: str, adapter: str | os.PathLike) -> dict[str, str]:
    """Of which merge a folder is, as may be published with it: names without the paths, and what tells paths apart."""
    places = [os.path.abspath(name) if os.path.exists(name) else str(name) for name in (base, adapter)]
    run = hashlib.blake2b("\n".join(places).encode(), digest_size=8).hexdigest()
    return {"base": Path(base).name, "adapter": Path(adapter).name, "run": run}


def unquantised_copy(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A causal LM with the same weights, dequantised, that shares no tensor with the model."""
    tree = tree_over(model)
    if quantised_linears(tree):
        tree = tree.dequantize(dtype=dtype)
        for note in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
            vars(tree).pop(note, None)
    copies = {id(p): _copied(p, dtype, device) for p in tree.parameters()}  # a tied head stays tied
    for module in tree.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, copies[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device, copy=True)
    return tree


def _copied(parameter: Tensor, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(device=device, dtype=dtype, copy=True), requires_grad=False)


def _difference(
    attached: PeftModel,
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Text, ...] | list[Text],
) -> tuple[float, float]:
    """Mean KL per token, and the share of equal likeliest tokens."""
    kls, equal = [], []
    for text in texts:
        ids = torch.tensor([prompt_ids(text, tokenizer)])
        p, q = (_log_probs(model, ids) for model in (attached, merged))
        kls.append((p.exp() * (p - q)).sum(-1))
        equal.append((p.argmax(-1) == q.argmax(-1)).float())
    return max(torch.cat(kls).mean().item(), 0.0), torch.cat(equal).mean().item()


def _log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    """`(L, V)` in float32, on the CPU."""
    device = next(model.parameters()).device
    with eval_mode(model):
        return model(ids.to(device)).logits[0].float().log_softmax(-1).cpu()
