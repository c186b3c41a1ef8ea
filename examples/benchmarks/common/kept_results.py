"""Results of a benchmark's runs, each in a file with the flags that decided it."""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

Flags = dict[str, str]


def flags(args: argparse.Namespace, left_out: Collection[str]) -> Flags:
    """What decides a run besides its arm and seed.

    >>> flags(argparse.Namespace(seeds=[1, 2], budget=0.5), ["seeds"])
    {'budget': '0.5'}
    """
    return {name: str(value) for name, value in vars(args).items() if name not in left_out}


def write_result(file: Path, result: dict, made_with: Flags) -> None:
    """Whole or not at all, so that a run that is stopped leaves nothing that looks like a result."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result | {"flags": made_with}))
    partial.replace(file)


def read_result(file: Path, made_with: Flags) -> dict:
    """What was written; the program ends where that was with other flags."""
    result = json.loads(file.read_text())
    if result["flags"] != made_with:
        raise SystemExit(f"{file} was made with {result['flags']}, this is {made_with}. Give another --output-dir.")
    return result
