"""Whether the base that vLLM reads from its file is the one that the policy's adapter sits on in memory."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor

from trl_ext.trainer_kit.loading import loading

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}  # not quantised
NOISE = 1e-5  # relative; what merging an adapter and taking it out again leaves in 32 bits
COLUMNS = 64


def check_base_weights(model: PeftModel, served: str, revision: str | None = None) -> None:
    """Raise a ValueError if the base that an adapter sits on is another than the one in the file.

    A few numbers of each tensor are compared, of those whose names are the same and that neither side has quantised; a
    merged adapter changes them all. The file's numbers may have been rounded: to 16 bits, and back.

    Args:
        model: The policy.
        served: Folder, or hub id of a download; one without safetensors is passed over.
        revision: Of the download.
    """
    with loading(f"VLLMGenerator(model={served!r})"):
        pairs = list(_pairs(model, safetensors_of(served, revision)))
    differs = [name for name, ours, theirs in pairs if not _same(ours, theirs)]
    if differs:
        raise ValueError(
            f"VLLMGenerator(model={served!r}): the policy's base is another in memory than in that file, which vLLM would "
            f"sample: of {len(pairs)} tensors {len(differs)} differ, e.g. {differs[0]!r}. Where an adapter was merged into it, "
            "save the merged model with its tokenizer and give its folder as model; else train the adapter on that file's base."
        )


def safetensors_of(served: str, revision: str | None = None) -> list[Path]:
    """The files of a folder's weights, or of a download's; none where it has no safetensors."""
    if Path(served).is_dir():
        folder = Path(served)
    else:
        found = [try_to_load_from_cache(served, name, revision=revision) for name in (WHOLE, INDEX)]
        folder = next((Path(path).parent for path in found if isinstance(path, str)), None)
    if folder is None:
        return []
    return [folder / WHOLE] if (folder / WHOLE).exists() else sorted(folder.glob("model-*.safetensors"))


def _pairs(model: PeftModel, files: list[Path]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, and a few numbers, of each tensor that both have: ours and the file's."""
    base = model.get_base_model()
    inner = f"{base.base_model_prefix}."
    named = {re.sub(r"\.base_layer\b", "", name): parameter for name, parameter in base.named_parameters()}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
        held = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
        for name, parameter in named.items():
            key = name if name in held else name.removeprefix(inner)
            pair = _numbers(parameter.detach(), held[key].get_slice(key)) if key in held else None
            if pair is not None:
                yield name, *pair


def _numbers(ours: Tensor, theirs: Any) -> tuple[Tensor, Tensor] | None:
    """The first numbers of the first, a middle and the last row that both have; None of tensors that are not alike in kind."""
    shape = theirs.get_shape()
    comparable = ours.is_floating_point() and theirs.get_dtype() in PLAIN and not ours.is_meta and ours.numel()
    if not comparable or ours.ndim != len(shape) or not shape:
        return None
    if list(ours.shape[1:]) != shape[1:]:
        return ours.new_ones(1).cpu(), ours.new_zeros(1).cpu()  # another model's
    rows = min(len(ours), shape[0])  # tokens may have been added
    if ours.ndim == 1:
        return ours[:rows].cpu(), theirs[:rows]
    taken = [(row, *[slice(0, COLUMNS)] * (ours.ndim - 1)) for row in (0, rows // 2, rows - 1)]
    return torch.stack([ours[index] for index in taken]).cpu(), torch.stack([theirs[index] for index in taken])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether these are the file's numbers, rounded or not, but for what merging and unmerging leaves.

    ‖ours − rounded(theirs)‖ ≤ max(10⁻⁵, ε / 2) · ‖theirs‖
    """
    noise = max(NOISE, torch.finfo(ours.dtype).eps / 2) * theirs.double().norm()
    rounded = (theirs.to(dtype).double() for dtype in (ours.dtype, torch.bfloat16, torch.float16))
    return any((ours.double() - one).norm() <= noise for one in rounded)
