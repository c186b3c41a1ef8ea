"""The files that `trl-ext evaluate` writes at its end, each with what it was asked: given again, it says that they are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trl_ext.cli.generate_files import RECORD_KEY
from trl_ext.cli.score_rows import file_fingerprint
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.row_files import UNREADABLE
from trl_ext.trainer_kit.run_changes import differences
from trl_ext.trainer_kit.run_record import as_json

ENDS = {"output": ".parquet", "png": ".png", "json": ".json"}
COMMAND = "command"  # under which JSON and PNG hold the record


def record_of(*options: object, rows: str | None) -> dict[str, Any]:
    """What decides what is found: all options but where it is written, and the rows' own bytes where they are in a file."""
    given = {name: value for each in options for name, value in vars(each).items() if name not in ENDS}
    file = Path(rows or "").expanduser()
    return as_json({"command": "evaluate"} | given | {"rows": file_fingerprint(file) if file.is_file() else None})


def output_file(flag: str, given: str | None) -> Path | None:
    """Where something is to be written; a ValueError for a name or folder that cannot be."""
    if given is None:
        return None
    path, end = Path(given).expanduser(), ENDS[flag]
    if path.suffix != end:
        raise ValueError(f"--{flag} {given}: expected a name that ends in {end}.")
    check_is_folder(path.parent, call=f"--{flag} {given}")
    return path


def yet_to_write(files: Mapping[str, Path | None], record: dict[str, Any]) -> dict[str, Path]:
    """Those of the files, by flag, that are not there; a ValueError for one that holds something else than this command's."""
    asked = {flag: path for flag, path in files.items() if path is not None}
    for flag, path in asked.items():
        if path.exists():
            call = f"--{flag} {path}"
            before = _record_in(path)
            if not isinstance(before, dict):
                raise ValueError(
                    f"{call}: there is a file that this command did not write. Give another, or remove it."
                )
            if different := differences(before, record):
                raise ValueError(
                    f"{call}: it is what another command found; {'; '.join(different[:5])}. Give another, or remove it."
                )
    return {flag: path for flag, path in asked.items() if not path.exists()}


def already_complete(files: Mapping[str, Path | None], missing: Mapping[str, Path]) -> bool:
    """Whether all that is asked for is there, which is then said."""
    there = [str(path) for path in files.values() if path is not None]
    if not there or missing:
        return False
    print(
        f"Complete already. {', '.join(there)}: by the same command. To see its tables, leave {'them' if there[1:] else 'it'} out."
    )
    return True


def _record_in(path: Path) -> Any:
    try:
        if path.suffix == ".parquet":
            return json.loads((pq.read_schema(path).metadata or {})[RECORD_KEY])
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))[0][COMMAND]
        from PIL import Image

        with Image.open(path) as image:
            return json.loads(image.info[COMMAND])
    except (*UNREADABLE, ImportError, LookupError, TypeError):
        return None


def add_to_parquet(path: Path, record: dict[str, Any]) -> None:
    """The record among a file's metadata."""
    table = pq.read_table(path)
    metadata = (table.schema.metadata or {}) | {RECORD_KEY: json.dumps(record).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def add_to_png(path: Path, record: dict[str, Any]) -> None:
    """The record among a picture's texts."""
    from PIL import Image, PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    texts.add_text(COMMAND, json.dumps(record))
    with Image.open(path) as image:
        image.load()
        image.save(path, format="PNG", pnginfo=texts)
