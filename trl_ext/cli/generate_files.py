"""The files of `trl-ext generate`: whose they are, and what is in them.

samples/trl_ext_run.json         what decides the samples, beside the parts while they come
samples/sampled-00003.parquet    a part
samples.parquet                  all of them; the record is then in its schema's metadata
"""

import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from datasets import Dataset

from trl_ext.generation.protocol import Policy
from trl_ext.generation.sample_files import PART_NAME, TOKENIZER_KEY, SampleFiles, prompt_type, sample_schema
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.run_changes import check_unchanged
from trl_ext.trainer_kit.run_record import RECORD_NAME, read_record
from trl_ext.trainer_kit.whole_files import COPYING, LEFTOVER, remove_leftovers

RECORD_COPYING = re.compile(rf"({RECORD_NAME.pattern})\.\d+{re.escape(COPYING)}")
RECORD_KEY = b"trl-ext generate"  # of the schema's metadata


def sampled_schema(prompts: Dataset, policy: Policy, record: dict[str, Any]) -> pa.Schema:
    """Of a part: a Grow's, with the record. The tokenizer is named where samples have ids of one."""
    tokenizer = None if policy.tokenizer is None else tokenizer_fingerprint(policy.tokenizer)
    schema = sample_schema(prompt_type(prompts), tokenizer or "")
    metadata = {RECORD_KEY: json.dumps(record, sort_keys=True).encode()}
    return schema.with_metadata(metadata | ({TOKENIZER_KEY: tokenizer.encode()} if tokenizer else {}))


def already_complete(files: SampleFiles, record: dict[str, Any]) -> bool:
    """Whether the file is there; a ValueError if it holds something else than this command's samples.

    What a kill has left of joining the parts is removed where those, with their record, are still there.
    """
    if _has_parts_of(files, record):
        remove_leftovers(files.finished.parent, re.compile(re.escape(files.finished.name)))
    if not files.finished.exists():
        return False
    call = f"--output {files.finished}"
    try:
        before = (pq.read_schema(files.finished).metadata or {}).get(RECORD_KEY)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{call}: there is a file that is no parquet file. Give another --output.") from error
    if before is None:
        raise ValueError(f"{call}: there is a file that this command did not write. Give another --output.")
    check_unchanged(json.loads(before), record, call=call)
    if _has_parts_of(files, record):  # it was killed while it removed them
        files.tidy()
    return True


def _has_parts_of(files: SampleFiles, record: dict[str, Any]) -> bool:
    is_half = any(RECORD_COPYING.fullmatch(path.name) for path in files.parts.glob("*"))
    return not is_half and read_record(files.parts) == record


def check_parts(files: SampleFiles, record: dict[str, Any]) -> None:
    """Raise a ValueError unless there is no folder for parts yet, or one with a record of this command and only parts.

    A folder without any part may have been left by a command that could not begin, so its record may differ.
    """
    if not files.parts.exists():
        return
    if remove_leftovers(files.parts, RECORD_NAME) and not any(files.parts.iterdir()):
        return  # killed while it wrote the record
    call = f"--output {files.finished}"
    names = sorted(path.name for path in files.parts.iterdir()) if files.parts.is_dir() else []
    foreign = [name for name in names if not _is_own(name)]
    before = read_record(files.parts) or {}
    if foreign or "prompts_per_part" not in before:  # else it is the record of a trainer's run
        raise ValueError(
            f"{call}: its parts would go into {str(files.parts)!r}, which holds something else "
            f"({repr(foreign[0]) if foreign else 'it has no record of this command'}). Give another --output, or remove "
            "it yourself."
        )
    if any(PART_NAME.fullmatch(name) for name in names):
        check_unchanged(before, record, call=call)
    remove_leftovers(files.parts, PART_NAME)


def _is_own(name: str) -> bool:
    leftover = LEFTOVER.fullmatch(name)
    name = leftover["name"] if leftover else name
    return bool(RECORD_NAME.fullmatch(name) or PART_NAME.fullmatch(name))


def summary(files: SampleFiles) -> tuple[str, float | None]:
    """What a finished file holds, in one line; and the share of its samples that ended, None where that is not known."""
    file = pa.dataset.dataset(files.finished)
    columns = {"ended": pc.field("ended"), "length": pc.list_value_length(pc.field("completion_ids"))}
    columns |= {"score": pc.field("score")} if "score" in file.schema.names else {}
    table = file.to_table(columns=columns)
    means = {name: pc.mean(table[name]).as_py() for name in columns}
    line = f"{files.finished}: {len(table)} samples"
    line += "" if means["ended"] is None else f", {means['ended']:.0%} ended"
    line += "" if means["length"] is None else f", mean length {means['length']:.1f} tokens"
    line += "" if means.get("score") is None else f", mean score {means['score']:.4g}"
    return line, means["ended"]
