"""Who labels for `trl-ext label`, and what it is told."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.ai_feedback import PREAMBLES, PreferenceLabeler
from trl_ext.cli.command_arguments import bits_of
from trl_ext.cli.prompt_files import read_file
from trl_ext.generation import EndpointLogProbs
from trl_ext.generation.extra_fields import EXAMPLE, read_extra_body
from trl_ext.query_types import EndpointLabeler, LanguageModelLabeler, QueryTypeClassifier
from trl_ext.query_types.labels import Labeler
from trl_ext.sequences.causal_lms import Model
from trl_ext.shared_base import SharedBase
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.near_names import near_name

EXAMPLE_COLUMNS = ("prompt", "completion_1", "completion_2", "better", "rationale")


@dataclass
class LabelerArguments:
    """Who labels."""

    _argument_group_name = "who labels"

    model: str | None = option(
        None,
        "Path or hub id of a causal LM; of an endpoint: its name there. Of query types, None: the shipped classifier, for "
        "English, or the path of *.safetensors.",
    )
    endpoint: bool = option(
        False, "Ask a server that speaks OpenAI's protocol; its key comes from the environment, OPENAI_API_KEY."
    )
    base_url: str | None = option(
        None, "Of the endpoint, e.g. http://localhost:8000/v1. None: as OPENAI_BASE_URL says, or OpenAI."
    )
    concurrency: int = option(8, "Of the endpoint: how much is asked at a time.")
    timeout: float = option(60.0, "Of the endpoint: the longest wait for one answer, in seconds.")
    max_retries: int = option(3, "Of the endpoint: how often a request that failed is sent again.")
    extra_body: str | None = option(
        None,
        f"Of the endpoint: other fields of each request, as JSON, e.g. '{EXAMPLE}' of a model that would think first.",
    )
    load_in_8bit: bool = option(False, "Load the model in LLM.int8().")
    load_in_4bit: bool = option(False, "Load the model in NF4 with double quantisation.")
    batch_size: int = option(16, "Of a model: sequences of a pass, of which a pair or a query has two.")


@dataclass
class PreferenceArguments:
    """How preferences are asked for."""

    _argument_group_name = "preferences"

    preamble: str = option(
        "helpfulness",
        f"{', '.join(PREAMBLES)}; or a .txt file with {{prompt}}, {{completion_1}} and {{completion_2}} where they are to be "
        "shown.",
    )
    examples: str | None = option(
        None,
        "A file of pairs that are shown with their answers: prompt, completion_1, completion_2, better (1 or 2), and with "
        "--rationale their rationale.",
    )
    as_text: bool = option(False, "Of an endpoint: ask for text to go on from, as base models are, and not as a chat.")
    rationale: bool = option(False, "Let it give its reasons first, and then the answer.")
    max_rationale_length: int = option(256, "Of the reasons, in tokens.")
    temperature: float = option(0.0, "Of the reasons; 0 takes the likeliest token.")
    seed: int = option(0, "Of the reasons, and of the pairs that are drawn from samples.")


def preference_labeler(who: LabelerArguments, how: PreferenceArguments) -> PreferenceLabeler:
    """As the flags say."""
    options = {
        "preamble": _preamble(how.preamble),
        "examples": _examples(how.examples),
        "rationale": how.rationale,
        "max_rationale_length": how.max_rationale_length,
        "temperature": how.temperature,
        "seed": how.seed,
        "batch_size": who.batch_size,
    }
    if who.model is None:
        raise ValueError("--model: expected who labels. Give the path or hub id of a causal LM.")
    check_endpoint(who)
    if not who.endpoint:
        if how.as_text:
            raise ValueError("--as_text without --endpoint: a model's own chat template decides. Leave it out.")
        return PreferenceLabeler(*_model(who), **options)
    server = EndpointLogProbs(who.model, who.base_url, chat=not how.as_text, **_waits(who))
    return PreferenceLabeler(server, **options)


def query_labeler(who: LabelerArguments) -> Labeler:
    """As the flags say."""
    check_endpoint(who)
    if who.endpoint:
        if who.model is None:
            raise ValueError("--model: expected its name on the server. Give one.")
        return EndpointLabeler(who.model, who.base_url, **_waits(who))
    if who.model is None or who.model.endswith(".safetensors"):
        return QueryTypeClassifier.load() if who.model is None else QueryTypeClassifier.load(who.model)
    return LanguageModelLabeler(*_model(who), batch_size=max(who.batch_size // 2, 1))


def check_endpoint(who: LabelerArguments) -> None:
    """Raise a ValueError for an option that would do nothing, of a server without one or a model beside one; or for no key."""
    default = LabelerArguments()
    ours, others = (
        ("load_in_8bit", "load_in_4bit", "batch_size"),
        ("base_url", "concurrency", "timeout", "max_retries", "extra_body"),
    )
    idle = [name for name in (ours if who.endpoint else others) if getattr(who, name) != getattr(default, name)]
    if idle:
        beside = "beside --endpoint: the server loads its model" if who.endpoint else "without --endpoint"
        raise ValueError(
            f"--{idle[0]}: it does nothing {beside}. Leave it out{'' if who.endpoint else ', or add --endpoint'}."
        )
    if who.endpoint and not (who.base_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        raise ValueError(
            "--base_url: OpenAI's own server needs a key, which is read from the environment alone. Set OPENAI_API_KEY there, "
            "or give the base_url of another server."
        )


def _waits(who: LabelerArguments) -> dict[str, Any]:
    names = ("concurrency", "timeout", "max_retries")
    extra = read_extra_body(who.extra_body, flag="--extra_body")
    return {name: getattr(who, name) for name in names} | {"extra_body": extra}


def _model(who: LabelerArguments) -> tuple[Model | str, PreTrainedTokenizerBase | None]:
    if who.load_in_8bit and who.load_in_4bit:
        raise ValueError("--load_in_8bit and --load_in_4bit: expected one of them. Leave one out.")
    if bits_of(who) is None:
        return who.model, None
    base = SharedBase.from_pretrained(who.model, bits=bits_of(who))
    return base.model, base.tokenizer


def _preamble(given: str) -> str:
    if given in PREAMBLES:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        near = near_name(given, PREAMBLES)
        said = f" Did you mean {near}?" if near else ""
        raise ValueError(f"--preamble {given}: expected one of {', '.join(PREAMBLES)}, or a text file.{said}")
    return path.read_text(encoding="utf-8")


def _examples(name: str | None) -> list[tuple]:
    if name is None:
        return []
    rows = read_file(Path(name).expanduser(), EXAMPLE_COLUMNS[:3], call=f"--examples {name}")
    missing = [column for column in EXAMPLE_COLUMNS[:4] if column not in rows.column_names]
    if missing:
        raise ValueError(f"--examples {name}: it has the columns {rows.column_names}, and no {missing[0]!r}. Add it.")
    names = [column for column in EXAMPLE_COLUMNS if column in rows.column_names]
    return [tuple(row[column] or "" for column in names) for row in rows]
