"""`trl-ext export`: what was trained, in the form in which it is served."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from trl_ext.cli.command_arguments import bits_of
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.export_template import go_template
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.sequences.turn_end import end_with_turn
from trl_ext.shared_base.merge import FILES, MARK
from trl_ext.shared_base.shared_base import SharedBase
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.own_folders import check_own_folder, mark_folder
from trl_ext.trainer_kit.saved_adapters import is_adapter
from trl_ext.trainer_kit.whole_files import written_whole

FORMS = ("hf", "gguf", "ollama", "vllm")
EXAMPLE = "trl-ext export RUN --to hf --output_dir MERGED"
DESCRIPTION = """\
hf: a plain transformers model, the adapter merged, with tokenizer, chat template and generation config. gguf: that, and a
file for llama.cpp, by its own converter. ollama: that, and a Modelfile with template and stop tokens. vllm: the line that
serves the adapter beside its base; nothing is written."""
ADAPTER, SCORES = "adapter_config.json", "ForSequenceClassification"
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
CONVERTER = "convert_hf_to_gguf.py"
GET_CONVERTER = (
    "git clone https://github.com/ggml-org/llama.cpp && "
    "pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt && export LLAMA_CPP=$PWD/llama.cpp"
)


@dataclass
class ExportArguments:
    """What is exported, and as what."""

    _argument_group_name = "what is exported"

    run: str | None = option(None, "Folder of a policy: an adapter, or a whole model. Also as the first word.")
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
    _check(args)
    if args.to == "vllm":
        print(serve_line(args))
        return
    converter = find_converter() if args.to == "gguf" else None  # asked before minutes of merging
    tokenizer = write_model(args)
    folder = Path(args.output_dir)
    print(f"{folder}: a transformers model with its tokenizer")
    if converter is not None:
        print(f"{convert(converter, folder)}: for llama.cpp")
    if args.to == "ollama":
        with written_whole(folder / "Modelfile") as partial:
            partial.write_text(modelfile(tokenizer, end_tokens(folder, tokenizer)), encoding="utf-8")
        print(f"{folder / 'Modelfile'}: ollama create NAME -f {folder / 'Modelfile'}")


def _check(args: ExportArguments) -> None:
    if args.run is None:
        raise ValueError("--run: expected the folder of a policy, e.g. a trainer's output_dir. Give it.")
    if args.to not in FORMS:
        raise ValueError(f"--to {args.to}: expected one of {', '.join(FORMS)}.")
    _check_policy(args)
    whole, needs_folder = not is_adapter(args.run), args.to != "vllm"
    if needs_folder == (args.output_dir is None):
        what = "expected the folder to write" if needs_folder else "nothing is written for vLLM, so leave it out"
        raise ValueError(f"--output_dir with --to {args.to}: {what}.")
    for name in ("base", "load_in_8bit", "load_in_4bit"):
        if getattr(args, name) and (whole or args.to == "vllm"):
            why = "the run is a whole model" if whole else "vLLM loads the base itself"
            raise ValueError(f"--{name}: {why}, so it does nothing. Leave it out.")
    if args.load_in_8bit and args.load_in_4bit:
        raise ValueError("--load_in_8bit and --load_in_4bit: the base was loaded in one of them. Give that.")
    if args.name is not None and (args.to != "vllm" or whole):
        raise ValueError(f"--name {args.name}: only an adapter under vLLM has one. Leave it out.")


def _check_policy(args: ExportArguments) -> None:
    """Of a folder, before anything is loaded: whether it holds a policy."""
    run, call = Path(args.run).expanduser(), f"--run {args.run}"
    adapter, whole = run / ADAPTER, run / "config.json"
    if adapter.is_file() and not whole.is_file():
        scores, why = _read(adapter, call).get("task_type") == "SEQ_CLS", "its task_type is SEQ_CLS"
    elif whole.is_file():
        kinds = _read(whole, call).get("architectures") or []
        scores, why = any(kind.endswith(SCORES) for kind in kinds), f"it is a {', '.join(kinds)}"
    elif run.exists() or (args.to == "vllm" and not HUB_ID.fullmatch(args.run)):  # hf is told by what loads it
        raise ValueError(
            f"{call}: expected a trainer's output_dir, and there is neither a config.json nor an {ADAPTER}. Give a folder "
            "that was saved, or a hub id, as org/name."
        )
    else:
        return
    if scores:
        raise ValueError(
            f"{call}: expected a policy, and {why}: a reward or value model, which writes no text. Give the policy; load "
            "this one by AutoModelForSequenceClassification."
        )


def _read(file: Path, call: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{call}: {file.name} cannot be read ({error}). Save the model once more.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{call}: {file.name} holds no object. Save the model once more.")
    return config


def write_model(args: ExportArguments) -> PreTrainedTokenizerBase:
    """Write the policy as a plain transformers model; its tokenizer."""
    if is_adapter(args.run):
        bits = bits_of(args)
        base = SharedBase.from_pretrained(args.base or _base_of(args.run), bits=bits, dtype=None if bits else "auto")
        merged = base.merge(args.run, args.output_dir, dtype=args.dtype)
        print(f"merged: {merged.kl:.2g} nats per token from the adapter on its base, {merged.agreement:.1%} alike")
        return tokenizer_beside(merged.path, call="trl-ext export")
    call, folder = f"--run {args.run}", Path(args.output_dir)
    mark = {"base": Path(args.run).name, "adapter": None, "run": str(Path(args.run).resolve())}
    check_own_folder(folder, MARK, mark, names=FILES, call=f"--output_dir {folder}")
    with loading(call):
        model = AutoModelForCausalLM.from_pretrained(args.run, dtype=args.dtype or "auto")
    tokenizer = tokenizer_beside(args.run, call=call)
    end_with_turn(model, tokenizer, call=call)
    mark_folder(folder, MARK, mark)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _base_of(adapter: str) -> str:
    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise ValueError(f"--run {adapter}: the adapter names no base. Give --base its path or hub id.")
    return base


def serve_line(args: ExportArguments) -> str:
    """How vLLM serves it."""
    if not is_adapter(args.run):
        return f"vllm serve {shlex.quote(args.run)}"
    config, name = PeftConfig.from_pretrained(args.run), args.name or Path(args.run).name
    if getattr(config, "use_dora", False) or getattr(config, "modules_to_save", None):
        raise ValueError(
            f"--run {args.run} --to vllm: vLLM serves LoRA alone, and it is more. Give --to hf, and serve that."
        )
    lora = shlex.quote(f"{name}={Path(args.run).resolve()}")
    return f"vllm serve {shlex.quote(_base_of(args.run))} --enable-lora --max-lora-rank {max(8, config.r)} --lora-modules {lora}"


def find_converter() -> Path:
    """llama.cpp's converter, in $LLAMA_CPP or on the PATH; a ValueError that says how to get it."""
    places = [Path(os.environ["LLAMA_CPP"]) / CONVERTER] if "LLAMA_CPP" in os.environ else []
    found = shutil.which(CONVERTER)
    places += [Path(found)] if found else []
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"--to gguf: llama.cpp's {CONVERTER} is neither in $LLAMA_CPP nor on the PATH. Get it: {GET_CONVERTER}"
    )


def convert(converter: Path, folder: Path) -> Path:
    """The file that llama.cpp's converter makes of a folder."""
    output = folder / "model.gguf"
    ran = subprocess.run(
        [sys.executable, str(converter), str(folder), "--outfile", str(output), "--outtype", "auto"],
        capture_output=True,
        text=True,
    )
    if ran.returncode or not output.is_file():
        said = (ran.stderr.strip() or ran.stdout.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"--to gguf: {converter} ended with {ran.returncode} and said: {said}. {folder} stays as it is."
        )
    return output


def end_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """With which an answer ends, by the generation config."""
    ids = GenerationConfig.from_pretrained(folder).eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return tokenizer.convert_ids_to_tokens([i for i in dict.fromkeys([*ids, tokenizer.eos_token_id]) if i is not None])


def modelfile(tokenizer: PreTrainedTokenizerBase, stops: list[str]) -> str:
    """For `ollama create`, beside the weights."""
    lines, template = ["FROM ."], go_template(tokenizer)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    elif tokenizer.chat_template:
        lines.append("# The chat template does more than to write around messages: write a TEMPLATE for it.")
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"
