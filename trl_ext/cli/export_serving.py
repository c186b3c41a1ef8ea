"""What serves an exported policy: vLLM's line, llama.cpp's file, Ollama's Modelfile."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from peft import PeftConfig
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from trl_ext.cli.export_template import DATE, go_template
from trl_ext.generation.vllm_checks import RANKS
from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.sequences.turn_end import turn_end_id
from trl_ext.trainer_kit.loading import DAMAGED, why_unloadable
from trl_ext.trainer_kit.logged_run import logged_run
from trl_ext.trainer_kit.saved_adapters import is_adapter
from trl_ext.trainer_kit.whole_files import written_whole

CONVERTER, GGUF, MODELFILE = "convert_hf_to_gguf.py", "model.gguf", "Modelfile"
GET_CONVERTER = (
    "git clone https://github.com/ggml-org/llama.cpp && "
    "pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt && export LLAMA_CPP=$PWD/llama.cpp"
)
PROMPTS = 4096  # tokens of a prompt that there is room for
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
SAMPLING = ("temperature", "top_p", "top_k", "min_p")  # called the same by transformers and Ollama
BEYOND_LORA = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
)  # that vLLM would serve without, or wrongly


# vLLM


def serve_line(run: str, name: str | None) -> str:
    """How vLLM serves it."""
    if not is_adapter(run):
        return f"vllm serve {shlex.quote(run)}"
    config, name = PeftConfig.from_pretrained(run), name or Path(run).resolve().name
    more = [option for option in BEYOND_LORA if getattr(config, option, None)]
    if more or config.r > RANKS[-1]:
        why = f"it has {more[0]}" if more else f"its rank is {config.r}"
        raise ValueError(
            f"--run {run} --to vllm: vLLM serves LoRA of one rank, up to {RANKS[-1]}, alone, and {why}. Give --to hf, and serve "
            "that."
        )
    base, rank = base_of_run(run), next(rank for rank in RANKS[1:] if rank >= config.r)
    base = str(Path(base).resolve()) if Path(base).exists() else base
    lora = shlex.quote(f"{name}={Path(run).resolve()}")
    own = _own_template(run, base) + _own_ends(run, base)
    return f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank}{own} --lora-modules {lora}"


def base_of_run(adapter: str) -> str:
    """The base that an adapter names."""
    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base:
        raise ValueError(f"--run {adapter}: the adapter names no base. Give --base its path or hub id.")
    return base


def check_base(run: str, given: str | None, *, to: str, scores: bool) -> None:
    """Raise a ValueError for an adapter's base that is not there; whoever serves may have one that is named as at the hub.

    Args:
        run: The adapter.
        given: The base that is named; None: the adapter's own.
        to: The form that is asked for.
        scores: Whether the adapter is a reward or value model.
    """
    base = os.path.expanduser(given or base_of_run(run))
    if to == "vllm" and HUB_ID.fullmatch(base) and not Path(base).parent.is_dir():
        return
    try:
        AutoConfig.from_pretrained(base)
    except (*DAMAGED, ValueError) as error:
        named = f"--base {given}" if given else f"--run {run}: its base {base}"
        turn = f"Write where it is now into {Path(run) / 'adapter_config.json'}, as base_model_name_or_path"
        if to != "vllm" and not scores:
            turn = "Give --base the folder where it is now, or its hub id"
        raise ValueError(f"{named}: it cannot be loaded ({why_unloadable(error)}). {turn}.") from error


def _own_template(run: str, base: str) -> str:
    """The option for a chat template that the run was trained with and the base lacks."""
    file, own, bases = Path(run).resolve() / "chat_template.jinja", tokenizer_at(run), tokenizer_at(base)
    same = own is None or (bases is not None and bases.chat_template == own.chat_template)
    return "" if same or not file.is_file() else f" --chat-template {shlex.quote(str(file))}"


def _own_ends(run: str, base: str) -> str:
    """The option for ends that the run was trained with and the base's generation config lacks, or answers would go on.

    vLLM reads ends from a folder's generation config alone; --override-generation-config changes how it samples, not them.
    """
    tokenizer = tokenizer_at(run) or tokenizer_at(base)
    end = None if tokenizer is None else turn_end_id(tokenizer)
    config, folder = _generation_of(base), Path(run).resolve()
    if config is None and end is not None:
        warnings.warn(
            f"--run {run} --to vllm: its base {base} cannot be read here, so that nobody looked whether it ends answers where the "
            f"run's chat template does, at {tokenizer.convert_ids_to_tokens(end)!r}. Where they go on, export it beside the base.",
            stacklevel=2,
        )
    if config is None or end is None or end in _ends_of(config, tokenizer):
        return ""
    if not folder.is_dir():
        raise ValueError(
            f"--run {run} --to vllm: its chat template closes a turn with {tokenizer.convert_ids_to_tokens(end)!r}, which the "
            "base does not know as an end, and vLLM is told of it by a file beside the adapter. Download the run, and give "
            "its folder."
        )
    if (folder / GENERATION_CONFIG_NAME).is_file():
        config = GenerationConfig.from_pretrained(folder)
    config.eos_token_id = list(dict.fromkeys([*_ends_of(config, tokenizer), end]))
    with written_whole(folder / GENERATION_CONFIG_NAME) as partial:
        config.to_json_file(partial)
    return f" --generation-config {shlex.quote(str(folder))}"


def _generation_of(model: str) -> GenerationConfig | None:
    """As vLLM finds it: where a model has no such file, what its config says. None: it cannot be read from here."""
    with suppress(OSError):
        return GenerationConfig.from_pretrained(model)
    with suppress(OSError):
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))
    return None


# llama.cpp


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
    output = folder / GGUF
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


# Ollama


def template_for_ollama(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template in Go, None where there is none; a ValueError for one that has no such form."""
    template = go_template(tokenizer)
    if template is None and tokenizer.chat_template:
        does = (
            "writes today's date"
            if DATE in str(tokenizer.chat_template)
            else "does more than to write around messages"
        )
        raise ValueError(
            f"--to ollama: the chat template {does} (as leaving out earlier thoughts), which Ollama's Go templates would write "
            "otherwise, so answers would be asked for otherwise than in training. Give --to gguf: llama.cpp's server reads "
            "the template as it is. Or --to hf, and write a Modelfile by hand."
        )
    if template is not None and '"""' in template:
        raise ValueError(
            '--to ollama: the chat template has """ in it, which ends a text in a Modelfile. Give --to gguf.'
        )
    return template


def modelfile(folder: Path, tokenizer: PreTrainedTokenizerBase, run: str) -> str:
    """For `ollama create`, beside the weights: template, ends, room, and how the generation config samples.

    Ollama's own penalty for repetition is 1.1 where nothing is said, which no training here has seen; its own room, for
    prompt and answer, is `PROMPTS` tokens.
    """
    config, template = GenerationConfig.from_pretrained(folder), template_for_ollama(tokenizer)
    lines = ["FROM .", *([] if template is None else [f'TEMPLATE """{template}"""'])]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in end_tokens(config, tokenizer)]
    lines.append(f"PARAMETER num_ctx {_room(folder, run)}")
    return "\n".join([*lines, *_sampling(config)]) + "\n"


def _room(folder: Path, run: str) -> int:
    """Tokens of prompt and answer: an answer may be as long as in training beside a long prompt, within the window."""
    window = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    begun = logged_run(Path(run))
    room = PROMPTS + int(0 if begun is None else begun.option("max_completion_length", 0))
    return min(window or room, room)


def _sampling(config: GenerationConfig) -> Iterator[str]:
    for name in SAMPLING if config.do_sample else ():
        if getattr(config, name, None) is not None:
            yield f"PARAMETER {name} {getattr(config, name)}"
    yield f"PARAMETER repeat_penalty {config.repetition_penalty or 1.0}"


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """With which an answer ends, by the generation config."""
    return tokenizer.convert_ids_to_tokens(_ends_of(config, tokenizer))


def _ends_of(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    own = None if tokenizer is None else tokenizer.eos_token_id
    return [i for i in dict.fromkeys([*ids, own]) if i is not None]


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
