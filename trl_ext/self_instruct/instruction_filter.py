"""Which instructions and instances are left out, and why: the paper's heuristics, each with a name that is counted."""

import string
from dataclasses import dataclass

import regex

from trl_ext.self_instruct.instruction_pool import rouge_words
from trl_ext.self_instruct.seed_tasks import Instance
from trl_ext.sequences.texts import Tokenize
from trl_ext.trainer_kit.config_checks import check_config
from trl_ext.trainer_kit.option_rules import Rule, below

KEYWORDS = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
    "go to",
)
RULES = {
    "shortest": Rule(1, expected="at least 1, a whole number", needs=below("shortest", "longest")),
    "longest": Rule(1, expected="at least 1, a whole number", needs=below("shortest", "longest")),
    "similarity": Rule(0, 1, expected="a similarity in [0, 1]"),
}
TOO_SHORT, TOO_LONG, KEYWORD, START = (
    "too short",
    "too long",
    "names what a model of text has not",
    "begins as it may not",
)
PUNCTUATION, FOREIGN, SIMILAR = "begins with punctuation", "does not begin in ASCII", "similar to another"
EMPTY, ECHO, COLON = "without output", "output equals input", "ends with a colon"
CONTRADICTORY, REPEATED = "contradicts another", "repeated"


@dataclass(frozen=True)
class InstructionFilter:
    """What an instruction must be; the defaults are the paper's code, for English.

    For another language, give its own `keywords` and `forbidden_starts`, and `ascii_start=False`; where words are not
    set apart by blanks, also `words=characters, counted=characters` (of `trl_ext`), with lengths in characters.

    Args:
        shortest, longest: Of an instruction, in words.
        keywords: Of what a model of text can neither see nor make. Words in Latin letters are found as whole words; others also
            inside of words, as particles and endings stand in many languages.
        forbidden_starts: How none may begin.
        ascii_start: Whether the first character must be of ASCII.
        similarity: Highest ROUGE-L F1 to any instruction of the pool.
        words, counted: From text to the words that are compared, and to those that are counted.
    """

    shortest: int = 4
    longest: int = 150
    keywords: tuple[str, ...] = KEYWORDS
    forbidden_starts: tuple[str, ...] = ("Write a program",)
    ascii_start: bool = True
    similarity: float = 0.7
    words: Tokenize = rouge_words
    counted: Tokenize = str.split

    def __post_init__(self):
        check_config(self, RULES)
        for name in ("keywords", "forbidden_starts"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(each, str) and each.strip() for each in given):
                raise ValueError(
                    f"InstructionFilter({name}={given!r}): expected words, none empty. Give a tuple of them."
                )
            object.__setattr__(self, name, tuple(given))
        for name in ("words", "counted"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"InstructionFilter({name}={getattr(self, name)!r}): expected a function from text to a list of words. "
                    "Give e.g. trl_ext.characters."
                )

    def reason(self, instruction: str) -> str | None:
        """Why an instruction, which is not empty, is left out, before it is compared with others; None: it is not."""
        length = len(self.counted(instruction))
        checks = (
            (TOO_SHORT, length < self.shortest),
            (TOO_LONG, length > self.longest),
            (KEYWORD, any(has_word(instruction, word) for word in self.keywords)),
            (START, instruction.startswith(self.forbidden_starts)),
            (PUNCTUATION, instruction[0] in string.punctuation),
            (FOREIGN, self.ascii_start and not instruction[0].isascii()),
        )
        return next((name for name, holds in checks if holds), None)


def has_word(text: str, word: str) -> bool:
    """Whether a word is in a text, in whatever case: as a whole one at an end that is a Latin letter.

    >>> has_word("Draw it.", "draw"), has_word("Imagery", "image"), has_word("이미지를 그려라", "이미지")
    (True, False, True)
    """
    first, last = (regex.match(r"[\p{Latin}\p{N}]", each) for each in (word[0], word[-1]))
    before = r"(?<![\p{Latin}\p{N}_])" if first else ""
    after = r"(?![\p{Latin}\p{N}_])" if last else ""
    return regex.search(before + regex.escape(word) + after, text, regex.IGNORECASE) is not None


def good_instances(instances: list[Instance]) -> tuple[list[Instance], list[str]]:
    """Those that can be learned from, each once, and a reason for each other.

    Where two have one input and different outputs, none of the task is taken.

    >>> good_instances([Instance("a", "1"), Instance("a", "1"), Instance("b", "b")])
    ([Instance(input='a', output='1')], ['output equals input', 'repeated'])
    """
    reasons = [instance_reason(each) for each in instances]
    good = [each for each, reason in zip(instances, reasons, strict=True) if reason is None]
    reasons = [reason for reason in reasons if reason is not None]
    outputs: dict[str, set[str]] = {}
    for each in good:
        outputs.setdefault(each.input, set()).add(each.output)
    if any(given and len(said) > 1 for given, said in outputs.items()):
        return [], reasons + [CONTRADICTORY] * len(good)
    distinct = list(dict.fromkeys(good))
    return distinct, reasons + [REPEATED] * (len(good) - len(distinct))


def instance_reason(instance: Instance) -> str | None:
    """Why an instance is left out, looked at alone."""
    if not instance.output:
        return EMPTY
    if instance.input == instance.output:
        return ECHO
    return COLON if instance.input.endswith(":") or instance.output.endswith(":") else None
