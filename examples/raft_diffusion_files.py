"""The files of raft_diffusion.py: each stage's images, scores and choices."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from trl_ext.generation import read_table, write_table
from trl_ext.trainer_kit import written_whole

Images = NDArray[np.uint8]  # (N, H, W, C)
Condition = str | int  # a prompt, or a class


def stage_file(folder: Path, stage: int) -> Path:
    return folder / f"stage-{stage:03d}.parquet"


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
