"""What a checkpoint must hold to be gone on with, and whether it is whole.

Said once for all trainers. A file that is there may still be empty or half of itself: a killed run, a full disk and an
interrupted copy all leave such files. So each is opened, as far as its header or directory; no tensor is read.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trl_ext.trainer_kit.run_record import RECORD

Needed = Sequence[str | tuple[str, ...]]  # names or patterns in the folder; of a tuple's, one must be there

TRAINER_STATE = "trainer_state.json"  # written last by transformers' Trainer
MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = ("adapter_model.safetensors", "*/adapter_model.safetensors", "adapter_model.bin", "*/adapter_model.bin")
ADAPTER_CONFIG = ("adapter_config.json", "*/adapter_config.json")
STEPPING = ("optimizer.pt", "scheduler.pt")
FSDP = (("pytorch_model_fsdp*",), ("optimizer*",), "scheduler.pt")
LATEST = "latest"  # of DeepSpeed: names the folder with the rest
READ_IF_THERE = ("config.json", "scaler.pt", RECORD)
PUSHED = "last-checkpoint"  # what hub_strategy="checkpoint" calls the newest


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, the highest step first; last `last-checkpoint`, which came from the hub."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    folders.sort(key=lambda path: int(path.name.split("-")[1]), reverse=True)
    pushed = Path(output_dir, PUSHED)
    return [*folders, pushed] if pushed.is_dir() else folders


def is_finished(folder: Path) -> bool:
    """Whether Trainer has written its last file, whatever became of the others since."""
    return _damage(folder / TRAINER_STATE) is None


def has_all_steps(folder: str | Path) -> bool:
    """Whether its run had made all its steps when it was written."""
    state = json.loads(Path(folder, TRAINER_STATE).read_text(encoding="utf-8"))
    return 0 < state.get("max_steps", 0) <= state.get("global_step", 0)


def rng_file(process: int, processes: int) -> str:
    """Name of a process's random state, as transformers' Trainer gives it."""
    return "rng_state.pth" if processes <= 1 else f"rng_state_{process}.pth"


def deepspeed_files(processes: Iterable[int], *, cuts_weights: bool) -> Needed:
    """What DeepSpeed reads of a checkpoint.

    Args:
        processes: Whose pieces must be there.
        cuts_weights: Whether each process has a piece of the weights (ZeRO-3), rather than the first all of them.
    """
    weights = [f"*/zero_pp_rank_{process}_*model_states.pt" for process in processes]
    steps = [f"*/*zero_pp_rank_{process}_*optim_states.pt" for process in processes]
    return (LATEST, *(weights if cuts_weights else ["*/mp_rank_*model_states.pt"]), *steps, "scheduler.pt")


def written_by(folder: Path) -> int | None:
    """How many processes wrote a checkpoint, or None where the random states in it do not say."""
    if (folder / rng_file(0, 1)).is_file():
        return 1
    count = len(list(folder.glob("rng_state_*.pth")))
    found = all((folder / rng_file(process, count)).is_file() for process in range(count))
    return count if count > 1 and found else None


def lacks(folder: Path, needed: Needed) -> list[str]:
    """Why a checkpoint cannot be gone on with, a sentence each; nothing if it is whole.

    Args:
        folder: The checkpoint's.
        needed: What must be there besides `trainer_state.json`.
    """
    if not folder.is_dir():
        return ["there is no such folder"]
    problems = []
    for names in (TRAINER_STATE, *needed):
        patterns = (names,) if isinstance(names, str) else names
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        problems += _damages(folder, found) if found else [f"there is no {patterns[0]} in it"]
    others = [folder / name for name in READ_IF_THERE if name not in needed and (folder / name).exists()]
    return problems + _damages(folder, others)


def _damages(folder: Path, paths: list[Path]) -> list[str]:
    damages = {path.relative_to(folder): _damage(path) for path in paths}
    return [f"{path} in it {damage}" for path, damage in damages.items() if damage]


def _damage(path: Path) -> str | None:
    """What is wrong with a file, or None if it can be opened."""
    if path.is_dir():
        return None if path.suffix == "" and any(path.iterdir()) else "is a folder without content"
    opened = _open_index if path.name.endswith(".index.json") else OPENED.get(path.suffix, _open_other)
    try:
        opened(path)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError, zipfile.BadZipFile) as error:
        return f"cannot be read ({path.stat().st_size if path.exists() else 'no'} bytes; {error})"
    return None


def _open_json(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    return content


def _open_index(path: Path) -> None:
    for name in sorted(set(_open_json(path)["weight_map"].values())):
        damage = _damage(path.parent / name)
        if damage:
            raise ValueError(f"its {name} {damage}")


def _open_safetensors(path: Path) -> None:
    with safe_open(path, "pt"):  # compares the header with the file's length
        pass


def _open_torch(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:  # whose directory is at its end
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise ValueError("expected what torch.save writes")


def _open_other(path: Path) -> None:
    if not path.stat().st_size:
        raise ValueError("it is empty")


OPENED: dict[str, Callable[[Path], object]] = {
    ".json": _open_json,
    ".safetensors": _open_safetensors,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".bin": _open_torch,
}
