"""`trl-ext export`: what was trained, in the form in which it is served."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.export_model import base_name, write_policy, write_scorer
from trl_ext.cli.export_serving import (
    HUB_ID,
    MODELFILE,
    check_base,
    convert,
    find_converter,
    modelfile,
    serve_line,
    template_for_ollama,
)
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.trainer_kit.checkpoints import newest_complete_checkpoint
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.saved_adapters import is_adapter
from trl_ext.trainer_kit.whole_files import written_whole

FORMS = ("hf", "gguf", "ollama", "vllm")
EXAMPLE = "trl-ext export RUN --to hf --output_dir MERGED"
DESCRIPTION = """\
hf: a plain transformers model, the adapter merged, with tokenizer, chat template and generation config; also of a reward or
value model. gguf: that of a policy, and a file for llama.cpp, by its own converter. ollama: that, and a Modelfile with template
and stop tokens. vllm: the line that serves the adapter beside its base; nothing is written but, where the base does not know
the token that closes a turn, a generation_config.json beside the adapter."""
ADAPTER, SCORES = "adapter_config.json", "ForSequenceClassification"


@dataclass
class ExportArguments:
    """What is exported, and as what."""

    _argument_group_name = "what is exported"

    run: str | None = option(None, "Folder of what was trained: an adapter, or a whole model. Also as the first word.")
    to: str = option("hf", f"One of {', '.join(FORMS)}.")
    output_dir: str | None = option(None, "Folder to write: a new one, or one of the same export.")
    base: str | None = option(None, "What the adapter goes on, by path or hub id. None: the base that it names.")
    load_in_8bit: bool = option(False, "The base as the adapter was trained on it: LLM.int8(), dequantised to merge.")
    load_in_4bit: bool = option(False, "The same of NF4.")
    dtype: str | None = option(None, "Of the weights, e.g. bfloat16. None: the base's, or the model's own.")
    name: str | None = option(None, "With vllm: by which the adapter is asked for. None: the folder's name.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = CommandParser(
        (ExportArguments,), prog="trl-ext export", example=EXAMPLE, description=DESCRIPTION, words="run"
    )
    (args,) = parser.read(argv)
    scores = _check(args)
    if args.to == "vllm":
        print(serve_line(args.run, args.name))
    elif scores:
        write_scorer(args)
        print(f"{args.output_dir}: a sequence classifier of transformers with its tokenizer")
    else:
        _write(args)


def _write(args: ExportArguments) -> None:
    converter = find_converter() if args.to == "gguf" else None  # asked before minutes of merging
    if args.to == "ollama":
        template_for_ollama(tokenizer_beside(args.run, args.base or base_name(args.run), call=f"--run {args.run}"))
    tokenizer, folder = write_policy(args), Path(args.output_dir)
    print(f"{folder}: a transformers model with its tokenizer")
    if converter is not None:
        print(f"{convert(converter, folder)}: for llama.cpp")
    if args.to == "ollama":
        with written_whole(folder / MODELFILE) as partial:
            partial.write_text(modelfile(folder, tokenizer, args.run), encoding="utf-8")
        print(f"{folder / MODELFILE}: ollama create NAME -f {folder / MODELFILE}")


def _check(args: ExportArguments) -> bool:
    """Whether it scores rather than writes; a ValueError for what does not go together."""
    if args.run is None:
        raise ValueError("--run: expected the folder of a policy, e.g. a trainer's output_dir. Give it.")
    if args.to not in FORMS:
        raise ValueError(f"--to {args.to}: expected one of {', '.join(FORMS)}.")
    scores = _check_run(args)
    whole, needs_folder = not is_adapter(args.run), args.to != "vllm"
    if needs_folder == (args.output_dir is None):
        what = "expected the folder to write" if needs_folder else "nothing is written for vLLM, so leave it out"
        raise ValueError(f"--output_dir with --to {args.to}: {what}.")
    for name in ("base", "load_in_8bit", "load_in_4bit"):
        if getattr(args, name) and (whole or scores or args.to == "vllm"):
            why = "the run is a whole model" if whole else "vLLM loads the base itself"
            why = (
                "a scorer is merged onto the base that it names, as its checkpoint is" if scores and not whole else why
            )
            raise ValueError(f"--{name}: {why}, so it does nothing. Leave it out.")
    if args.load_in_8bit and args.load_in_4bit:
        raise ValueError("--load_in_8bit and --load_in_4bit: the base was loaded in one of them. Give that.")
    if args.name is not None and (args.to != "vllm" or whole):
        raise ValueError(f"--name {args.name}: only an adapter under vLLM has one. Leave it out.")
    if not whole:
        check_base(args.run, args.base, to=args.to, scores=scores)
    return scores


def _check_run(args: ExportArguments) -> bool:
    """Of a folder, before anything is loaded: whether it holds a reward or value model; a ValueError where it holds none."""
    run, call = Path(args.run).expanduser(), f"--run {args.run}"
    adapter, whole = run / ADAPTER, run / "config.json"
    if adapter.is_file() and not whole.is_file():
        scores, why = _read(adapter, call).get("task_type") == "SEQ_CLS", "its task_type is SEQ_CLS"
    elif whole.is_file():
        kinds = _read(whole, call).get("architectures") or []
        scores, why = any(kind.endswith(SCORES) for kind in kinds), f"it is a {', '.join(kinds)}"
    elif run.exists() or (args.to == "vllm" and not HUB_ID.fullmatch(args.run)):  # hf is told by what loads it
        newest = newest_complete_checkpoint(run) if run.is_dir() else None
        holds = "Give a folder that was saved, or a hub id, as org/name."
        if newest is not None:
            holds = (
                f"It holds checkpoints, as of a run that was stopped: give the newest, {newest}, or let the run end."
            )
        raise ValueError(
            f"{call}: expected a trainer's output_dir, and there is neither a config.json nor an {ADAPTER}. {holds}"
        )
    else:
        return False
    if scores and args.to != "hf":
        raise ValueError(
            f"{call} --to {args.to}: expected a policy, and {why}: a reward or value model, which writes no text. Give the "
            "policy; --to hf writes this one as a plain sequence classifier."
        )
    return scores


def _read(file: Path, call: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{call}: {file.name} cannot be read ({error}). Save the model once more.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{call}: {file.name} holds no object. Save the model once more.")
    return config
