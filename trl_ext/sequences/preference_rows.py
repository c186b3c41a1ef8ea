"""Preference rows as people have them, in TRL's shape: prompt, chosen and rejected, all text or all messages."""

from collections.abc import Mapping
from typing import Any

from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.text_shapes import EXPECTED, Fault, fault_of, from_sharegpt, is_sharegpt, shown, with_text
from trl_ext.sequences.texts import Text

SIDES = ("chosen", "rejected")
PROMPT_TOKENS = "num_prompt_tokens"  # column: how many of `chosen_ids` stand before the completion
CONVERSATIONS = "conversations"  # LLaMA-Factory's name for the prompt


def preference_row(row: Mapping[str, Any]) -> dict[str, Text]:
    """The `chosen` and `rejected` of a row, and its `prompt` if it has one, as TRL's `RewardTrainer` reads them.

    Read are: one message in place of a list, ShareGPT's messages, and the text of parts. A prompt, also under
    LLaMA-Factory's name `conversations`, takes the form of the answers. Where they are whole conversations that begin
    with it, it is what they share, and is left out of them. `dataset.map(preference_row)` makes TRL's rows of others.

    >>> said = {"role": "user", "content": "2 + 2?"}
    >>> answers = {side: [said, {"role": "assistant", "content": side}] for side in SIDES}
    >>> preference_row({"prompt": "2 + 2?", **answers})["prompt"]
    [{'role': 'user', 'content': '2 + 2?'}]

    Raises:
        ValueError: For a value that is none of these, with what it is and how to convert it.
    """
    chosen, rejected = (_answer(row[side], side) for side in SIDES)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("one of 'chosen' and 'rejected' is text and the other messages. Give both in one form.")
    name = next((name for name in ("prompt", CONVERSATIONS) if name in row), None)
    if name is None:
        return {"chosen": chosen, "rejected": rejected}
    prompt = as_messages(row[name])
    if not isinstance(chosen, str) and _is_whole(chosen, rejected):
        return _parted(prompt, chosen, rejected)
    fault = fault_of(prompt, may_be_empty=isinstance(chosen, str))
    if fault is not None:
        raise ValueError(_told(name, row[name], fault))
    if isinstance(prompt, str) and not isinstance(chosen, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(chosen, str) and not isinstance(prompt, str):
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def pair_prompt(row: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected completion of a row in TRL's shape; without a prompt it is the messages that they share.

    >>> pair_prompt({"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"})
    ('', '2 + 2 = 4', '2 + 2 = 5')
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    if isinstance(chosen, str):
        return "", chosen, rejected
    length = min(common_length([chosen, rejected]), len(chosen) - 1, len(rejected) - 1)
    return chosen[:length], chosen[length:], rejected[length:]


def check_complete(row: Mapping[str, Any], pair: tuple[str, str], where: str) -> None:
    """Raise a ValueError for a row without two completions in the columns `pair`, which it begins with `where`."""
    for column in pair:
        if not _has_completion(as_messages(row[column])):
            raise ValueError(
                f"{where} has no completion in column {column!r} (got {row[column]!r}). Complete it, or drop such rows "
                "with `dataset.filter`."
            )
    if PROMPT_TOKENS in row and not 0 <= row[PROMPT_TOKENS] < len(row[pair[0]]):
        raise ValueError(
            f"{where} has {PROMPT_TOKENS}={row[PROMPT_TOKENS]}, which leaves no completion of its {len(row[pair[0]])} "
            f"tokens in column {pair[0]!r}. Count the tokens before the chosen completion, or leave the column out."
        )


def _has_completion(completion: Any) -> bool:
    """Whether there is text that is not blank, a token, or a last message that says or calls something."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], Mapping):
        return _is_said(completion[-1].get("content")) or bool(completion[-1].get("tool_calls"))
    return _is_said(completion)


def _is_said(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else content is not None and content != []


def repeats_prompt(row: Mapping[str, Any]) -> bool:
    """Whether both completions are text that begins with the row's prompt, and goes on."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        return False
    return all(isinstance(row[side], str) and row[side] != prompt and row[side].startswith(prompt) for side in SIDES)


def without_repeat(row: Mapping[str, Any]) -> dict[str, str]:
    """Text behind the prompt.

    >>> without_repeat({"prompt": "2 + 2 =", "chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"})
    {'chosen': ' 4', 'rejected': ' 5'}
    """
    return {side: row[side].removeprefix(row["prompt"]) for side in SIDES}


def as_messages(value: Any) -> Any:
    """What is one message or ShareGPT's as a list of messages, and parts of text as text; all else as it is."""
    messages = [value] if isinstance(value, Mapping) else value
    if isinstance(messages, list):
        messages = [from_sharegpt(message) if is_sharegpt(message) else message for message in messages]
    return with_text(messages)


def _answer(value: Any, side: str) -> Text:
    answer = as_messages(value)
    fault = fault_of(answer, may_be_empty=True)
    if fault is not None:
        raise ValueError(_told(side, value, fault))
    return answer


def _is_whole(chosen: list[dict], rejected: list[dict]) -> bool:
    """Whether both are conversations from their beginning, rather than what the assistant answers."""
    return all(answer and answer[0]["role"] not in ("assistant", "tool") for answer in (chosen, rejected))


def _parted(prompt: Any, chosen: list[dict], rejected: list[dict]) -> dict[str, Text]:
    """Whole conversations, cut where they part, if what they share has the prompt in it, or there is none."""
    ours, other = _without_nones(chosen), _without_nones(rejected)
    length = min(common_length([ours, other]), len(ours) - 1, len(other) - 1)
    shared = ours[:length]
    if isinstance(prompt, list) and prompt and fault_of(prompt) is None:
        return _behind(prompt, shared, chosen, rejected)
    if not shared or not (prompt is None or prompt in ("", []) or _says(shared, prompt)):
        what = "and it is not among the messages that the two whole conversations share"
        fault = Fault(what, "Leave the column out, or the prompt's messages out of both.")
        raise ValueError(_told("prompt", prompt, fault))
    return {"prompt": chosen[:length], "chosen": chosen[length:], "rejected": rejected[length:]}


def _behind(prompt: list[dict], shared: list[dict], chosen: list[dict], rejected: list[dict]) -> dict[str, Text]:
    """What follows the prompt in two conversations that share `shared`; both whole where they do not repeat it."""
    given = _without_nones(prompt)
    if shared[: len(given)] == given:
        prompt = chosen[: len(shared)]
    length = len(shared) if shared and _without_nones(prompt)[-len(shared) :] == shared else 0
    return {"prompt": prompt, "chosen": chosen[length:], "rejected": rejected[length:]}


def _says(messages: list[dict], text: Any) -> bool:
    return isinstance(text, str) and any(str(message.get("content")).strip() == text.strip() for message in messages)


def _without_nones(messages: list[dict]) -> list[dict]:
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _told(name: str, value: Any, fault: Fault) -> str:
    return f"{name!r} is {shown(value)}: expected {EXPECTED}, {fault.what}. {fault.remedy_for(name)}"
