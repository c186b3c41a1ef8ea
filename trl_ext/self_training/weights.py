"""The trainable weights of a model at some moment: kept, put back, exchanged for a while; an Improve's best ones on disk.

Under an adapter these are the adapter's; the frozen base is never copied. So the policy of the run's beginning, which
ranking by KL and restarts need, costs an adapter and not a second model.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trl_ext.self_training.stage_table import ImproveEntry
from trl_ext.trainer_kit.sharding import as_cut, copy_whole, whole
from trl_ext.trainer_kit.whole_files import written_whole

BEST_NAME = re.compile(r"best-improve-\d{3,}-step-\d+\.safetensors")
Weights = dict[str, Tensor]


def trainable_weights(model: nn.Module, *, kept: bool = True) -> Weights:
    """Copies, on the CPU, of all parameters that are trained, whole; where FSDP2 cuts them, all processes must ask.

    Args:
        kept: Whether this process keeps them, or only takes part.
    """
    weights: Weights = {}
    for name, parameter in _trained(model):
        values = whole(parameter.detach())
        if kept:
            weights[name] = values.to("cpu", copy=True)
    return weights


@torch.no_grad()
def set_weights(model: nn.Module, weights: Weights) -> None:
    """Copy weights into a model's trainable parameters, whose optimizer goes on with the same tensors."""
    for name, parameter in _trainable(model, weights):
        copy_whole(parameter, weights[name])


@contextmanager
def exchanged(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Let a model have other trainable weights inside the block."""
    own = {name: parameter.data for name, parameter in _trainable(model, weights)}
    try:
        for name, parameter in _trainable(model, weights):
            parameter.data = weights[name].to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in _trainable(model, weights):
            parameter.data = own[name]


def save_weights(path: Path, weights: Weights) -> None:
    with written_whole(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial)


def best_path(output_dir: str, entry: ImproveEntry) -> Path:
    """Where a run keeps the weights of an Improve's best held-out score."""
    return Path(output_dir) / f"best-improve-{entry.improve:03d}-step-{entry.best_step}.safetensors"


def remove_best(output_dir: str, *, needed: list[ImproveEntry]) -> None:
    """Remove the best weights of a run's Improves, apart from those that are needed."""
    kept = {best_path(output_dir, entry).name for entry in needed}
    for path in list(Path(output_dir).iterdir()):
        if BEST_NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def put_back_best(model: nn.Module, output_dir: str, entry: ImproveEntry, *, trainer: str) -> None:
    """Give a model the best weights of an Improve; a ValueError if they are gone."""
    path = best_path(output_dir, entry)
    if not path.is_file():
        raise ValueError(
            f"{trainer}: {str(path)!r}, the best weights of Improve {entry.improve + 1}, are gone; an older checkpoint "
            "needs files that a newer one has replaced. Resume with resume_from_checkpoint=True."
        )
    set_weights(model, load_file(path))


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in as_cut(model).named_parameters() if p.requires_grad]


def _trainable(model: nn.Module, weights: Weights) -> list[tuple[str, nn.Parameter]]:
    parameters = _trained(model)
    if {name for name, _ in parameters} != set(weights):
        different = sorted({name for name, _ in parameters} ^ set(weights))
        raise ValueError(
            f"the saved weights and the model's trainable parameters differ, e.g. in {different[0]!r}: expected the "
            "model and adapter that the run began with. Build the trainer with those."
        )
    return parameters
