"""What kind of encoder a repository holds: told by its files, whether it is a folder or on the Hugging Face hub."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache

MODULES = "modules.json"  # how sentence-transformers says which modules make a vector, e.g. pooling and normalising
PARTS = ("1_Pooling/config.json", "2_Normalize", "config_sentence_transformers.json")  # what else it writes
IN_ALL = ".gitattributes"  # every repository on the hub has one, which no library asks for


def is_sentence_repository(path: str) -> bool:
    """Whether a folder or hub id is a sentence-transformers model, which pools and normalises in its own way.

    One encoder has one meaning: the id of a repository and a folder with its files are told alike.

    Raises:
        ValueError: Where modules.json is missing beside files that go with it, or where it cannot be known, since the
            hub cannot be reached and the local cache has only a part of the repository.
    """
    holds = _folder_holds if Path(path).is_dir() else _hub_holds
    if holds(path, MODULES):
        return True
    parts = [name for name in PARTS if holds(path, name)]
    if parts:
        raise ValueError(
            f"it has {parts[0]}, as sentence-transformers models do, and no {MODULES}, which says how its vectors are "
            "made. The copy is not whole: copy or download it again."
        )
    return False


def _folder_holds(path: str, name: str) -> bool:
    return (Path(path) / name).exists()


def _hub_holds(path: str, name: str) -> bool:
    with suppress(OSError, ValueError):  # not there, which the cache then knows, or no hub
        hf_hub_download(path, name)
    cached = {file: try_to_load_from_cache(path, file) for file in (name, IN_ALL, "config.json")}
    unknown = cached[name] is None and not isinstance(cached[IN_ALL], str)
    if unknown and name == MODULES and isinstance(cached["config.json"], str):
        raise ValueError(
            f"the hub cannot be reached, and the local cache has only a part of {path}, so whether it is a "
            f"sentence-transformers model (whether it has {MODULES}) is not known. Where there is a network, run "
            f"`hf download {path}`, which takes all of it; or give a folder with all of its files."
        )
    return cached[name] not in (None, _CACHED_NO_EXIST)
