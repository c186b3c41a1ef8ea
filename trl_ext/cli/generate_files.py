"""The files of `trl-ext generate`: whose they are, and what is in them.

samples/self_training_run.json   what decides the samples, beside the parts while they come
samples/sampled-00003.parquet    a part
samples.parquet                  all of them; the record is then in its schema's metadata
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from datasets import Dataset

from trl_ext.generation.protocol import Policy
from trl_ext.generation.sample_files import TOKENIZER_KEY, SampleFiles, sample_schema
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.run_record import RECORD, check_unchanged, read_record

RECORD_KEY = b"trl-ext generate"  # of the schema's metadata


def sampled_schema(prompts: Dataset, policy: Policy, record: dict[str, Any]) -> pa.Schema:
    """Of a part: a Grow's, with the record. The tokenizer is named where samples have ids of one."""
    tokenizer = None if policy.tokenizer is None else tokenizer_fingerprint(policy.tokenizer)
    schema = sample_schema(list(prompts["prompt"]), tokenizer or "")
    metadata = {RECORD_KEY: json.dumps(record, sort_keys=True).encode()}
    return schema.with_metadata(metadata | ({TOKENIZER_KEY: tokenizer.encode()} if tokenizer else {}))


def already_complete(files: SampleFiles, record: dict[str, Any]) -> bool:
    """Whether the file is there; a ValueError if it holds something else than this command's samples."""
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
    if files.parts.is_dir() and _only_parts(files):  # it was killed while it removed them
        files.tidy()
    return True


def check_parts(files: SampleFiles, record: dict[str, Any]) -> None:
    """Raise a ValueError if the folder for parts holds those of another command, or files that are no parts.

    A folder without any part may have been left by a command that could not begin, so its record may differ.
    """
    call = f"--output {files.finished}"
    if not files.parts.exists():
        return
    is_own = files.parts.is_dir() and _only_parts(files)
    has_parts = any(files.parts.glob("*.parquet"))
    before = read_record(files.parts)
    if not is_own or (has_parts and before is None):
        raise ValueError(
            f"{call}: its parts would go into {str(files.parts)!r}, which holds something else. Give another --output."
        )
    if has_parts:
        check_unchanged(before, record, call=call)


def _only_parts(files: SampleFiles) -> bool:
    return all(path.name.startswith(("sampled-", "scored-", RECORD)) for path in files.parts.iterdir())


def summary(files: SampleFiles) -> str:
    """What a finished file holds, in one line."""
    file = pa.dataset.dataset(files.finished)
    columns = {"ended": pc.field("ended"), "length": pc.list_value_length(pc.field("completion_ids"))}
    columns |= {"score": pc.field("score")} if "score" in file.schema.names else {}
    table = file.to_table(columns=columns)
    means = {name: pc.mean(table[name]).as_py() for name in columns}
    line = f"{files.finished}: {len(table)} samples"
    line += "" if means["ended"] is None else f", {means['ended']:.0%} ended"
    line += "" if means["length"] is None else f", mean length {means['length']:.1f} tokens"
    return line if means.get("score") is None else f"{line}, mean score {means['score']:.4g}"
