"""What `rlhf_chain.py` does with preferences but learn from them: read pairs and prompts, split them, count agreement."""

import hashlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from trl_ext import LearnedReward
from trl_ext.sequences import prompt_ids, repeats_prompt, shown, whole_ids, without_repeat
from trl_ext.trainer_kit import UNREADABLE, json_rows

NAME_YOURS = "Name yours with --pair-fields or --prompt-field."
MESSAGES = (
    "These are messages, and this script learns from text: write what is said, e.g. row['prompt'] = "
    "row['chosen'][0]['content'] + '\\n\\n' and row['chosen'] = row['chosen'][-1]['content']."
)
PAIR = ("prompt", "chosen", "rejected")


def load_pairs(
    path: Path, fields: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, console: Console
) -> list[dict]:
    """The pairs whose two completions differ and fit the model; says how many do not.

    Args:
        path: A file of JSON lines.
        fields: Three names, of a prompt, the preferred and the other completion; or two, of two versions of one text.
        tokenizer: The model's.
        max_length: Tokens of prompt, completion and end token together, at most.
        console: Where it is said.
    """
    pairs = [_pair(row, fields) for row in read_rows(path, fields)]
    if pairs and all(map(repeats_prompt, pairs)):
        console.print(f"{path.name}: both completions begin with the prompt in each row; they are read without it")
        pairs = [pair | without_repeat(pair) for pair in pairs]
    different = [pair for pair in pairs if pair["chosen"] and pair["rejected"] and pair["chosen"] != pair["rejected"]]
    fitting = [pair for pair in different if _length(pair, tokenizer) <= max_length]
    console.print(
        f"{path.name}: {len(pairs)} pairs; dropped {len(different) - len(fitting)} longer than {max_length} tokens "
        f"and {len(pairs) - len(different)} without two different completions; {len(fitting)} left"
    )
    return fitting


def load_prompts(
    path: Path, field: str, tokenizer: PreTrainedTokenizerBase, max_length: int, console: Console, *, cut: bool
) -> list[str]:
    """The different prompts of at most `max_length` tokens; says how many are not.

    Args:
        path, field, tokenizer, max_length, console: As for `load_pairs`.
        cut: Whether only the first sentence of the field is the prompt.
    """
    texts = [row[field] for row in read_rows(path, [field])]
    unique = list(dict.fromkeys(first_sentence(text.strip()) if cut else text for text in texts))
    fitting = [text for text in unique if len(prompt_ids(text, tokenizer)) <= max_length]
    console.print(
        f"{path.name}: {len(texts)} prompts; dropped {len(unique) - len(fitting)} longer than {max_length} tokens and "
        f"{len(texts) - len(unique)} that repeat another; {len(fitting)} left"
    )
    return fitting


def split(items: list, prompt_of: Callable, *, seed: int, share: float, name: str) -> tuple[list, list]:
    """Training and held-out items, by a coin for each prompt: all pairs of one prompt are on the same side.

    The coin is a hash, so that a file may be sorted or grow and no item changes sides.
    """

    def is_held_out(item) -> bool:
        digest = hashlib.blake2b(f"{seed}:{prompt_of(item)}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64

    train, held_out = [item for item in items if not is_held_out(item)], [item for item in items if is_held_out(item)]
    if not train or not held_out:
        raise ValueError(
            f"--held-out {share} of {len(items)} {name} leaves {len(train)} to train on and {len(held_out)} to hold "
            "out: expected some of each. Add rows, raise --max-length, or change the share."
        )
    return train, held_out


def share_won(ours: list[float], theirs: list[float]) -> float:
    """Share of places at which ours is larger, in percent; equal ones count half."""
    return 100 * statistics.mean((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True))


def length_accuracy(train: list[dict], held_out: list[dict]) -> float:
    """Held-out accuracy of "the longer wins", or of "the shorter wins" where that is right more often in training."""

    def longer_wins(part: list[dict]) -> float:
        return share_won([len(pair["chosen"]) for pair in part], [len(pair["rejected"]) for pair in part])

    return longer_wins(held_out) if longer_wins(train) >= 50 else 100 - longer_wins(held_out)


def pair_accuracy(reward: LearnedReward, pairs: list[dict]) -> float:
    prompts = [pair["prompt"] for pair in pairs]
    sides = ([pair[side] for pair in pairs] for side in ("chosen", "rejected"))
    return share_won(*(reward(prompts=prompts, completions=side) for side in sides))


def read_rows(path: Path, fields: list[str]) -> Iterator[dict]:
    """The rows of a file of JSON lines, each of which has text in these fields."""
    try:
        rows = list(json_rows(path))
    except UNREADABLE as error:
        raise ValueError(
            f"{path}: it cannot be read ({error}). Give --pairs and --prompts a file of JSON lines each."
        ) from error
    for number, row in enumerate(rows, start=1):
        bad = [field for field in fields if not isinstance(row.get(field), str)]
        if bad:
            raise ValueError(
                f"{path}, line {number}: expected text in the field {bad[0]!r}, got {shown(row.get(bad[0]))} among the "
                f"fields {list(row)}. {MESSAGES if isinstance(row.get(bad[0]), list | dict) else NAME_YOURS}"
            )
        yield row


def first_sentence(text: str) -> str:
    """Up to the first word that ends in a stop, a question or an exclamation mark; all of it if none does.

    >>> first_sentence('"Go!" he said. He went.'), first_sentence("no end")
    ('"Go!"', 'no end')
    """
    words = text.split(" ")
    ends = (i for i, word in enumerate(words, start=1) if word.rstrip("\"')").endswith((".", "!", "?")))
    return " ".join(words[: next(ends, len(words))])


def _pair(row: dict, fields: list[str]) -> dict[str, str]:
    if len(fields) == 3:
        return {name: row[field] for name, field in zip(PAIR, fields, strict=True)}
    versions = {field: row[field].strip() for field in fields}
    chosen, rejected = (text.removeprefix(first_sentence(text)) for text in versions.values())
    original = versions[row.get("original", fields[0])]
    return {"prompt": first_sentence(original), "chosen": chosen, "rejected": rejected}


def _length(pair: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longer half, with the end token that RewardTrainer adds."""
    return max(len(whole_ids(pair["prompt"], pair[side], tokenizer)) for side in ("chosen", "rejected"))
