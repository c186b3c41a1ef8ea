"""The files of raft_diffusion.py: each stage's images, scores, choices and weights, and what run they are of."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trl_ext.generation import read_table, write_table
from trl_ext.trainer_kit import written_whole

Images = NDArray[np.uint8]  # (N, H, W, C)
Condition = str | int  # a prompt, or a class


def stage_file(folder: Path, stage: int) -> Path:
    return folder / f"stage-{stage:03d}.parquet"


def weights_file(folder: Path, stage: int) -> Path:
    return folder / f"stage-{stage:03d}.safetensors"


def begin_or_go_on(folder: Path, unet: nn.Module, trained: dict[str, Tensor], run: dict) -> None:
    """Write down what run a folder is of and what it begins with, or take that; a ValueError where it is of another run."""
    told, record, start = json.dumps(run, sort_keys=True, indent=1), folder / "run.json", folder / "start.safetensors"
    if not record.exists():
        write_weights(start, trained)
        with written_whole(record) as partial:
            partial.write_text(told, encoding="utf-8")
    elif (there := record.read_text(encoding="utf-8")) != told:
        others = [name for name, value in json.loads(told).items() if json.loads(there).get(name) != value]
        raise ValueError(
            f"raft(folder={str(folder)!r}): the run there has another plan or other conditions, reward or weights; other "
            f"than here: {', '.join(others)}. Give another."
        )
    take_weights(unet, start)


def write_weights(path: Path, trained: dict[str, Tensor]) -> None:
    with written_whole(path) as partial:
        save_file({name: value.contiguous() for name, value in trained.items()}, partial)


def take_weights(unet: nn.Module, path: Path) -> None:
    """Put weights into their places in the UNet; what is not among them stays."""
    unet.load_state_dict(load_file(path), strict=False)


def write_stage(path: Path, images: Images, asked: list, scores: NDArray, kept: NDArray) -> None:
    """A parquet file with each image as PNG, and a PNG of those that are kept."""
    with written_whole(path.with_suffix(".png")) as partial:
        picture(np.concatenate(images[kept][:16], axis=1)).save(partial, format="PNG")
    columns = {"image": [png(image) for image in images], "condition": asked, "score": scores, "kept": kept}
    write_table(path, pa.table(columns))


def read_stage(path: Path) -> tuple[Images, list, NDArray, NDArray]:
    columns = read_table(path).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(image))) for image in columns["image"]]
    images = np.stack([image if image.ndim == 3 else image[:, :, None] for image in images])
    return images, columns["condition"], np.array(columns["score"]), np.array(columns["kept"])


def picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    picture(image).save(file, format="PNG")
    return file.getvalue()
