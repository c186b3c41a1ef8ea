"""What a labeler is told before a pair: how good completions differ from bad ones, and how the pair is shown."""

import re
from dataclasses import dataclass

from trl_ext.trainer_kit.near_names import near_name

PLACEHOLDERS = ("prompt", "completion_1", "completion_2")
NAMED = re.compile(r"\{(\w*)\}")
REMEDY = "Write each of {prompt}, {completion_1} and {completion_2} where it is to be shown."


@dataclass(frozen=True)
class Preamble:
    """The words around a pair.

    Args:
        instruction: Said once, before all examples and the pair.
        pair: How a pair is shown, with the placeholders {prompt}, {completion_1} and {completion_2}.
        ending: What is asked for, and the answer follows.
        rationale: What asks for reasons, before the ending, where the labeler is to give them.
        answers: That the first one is the better, and that the second one is: a token each.
    """

    instruction: str
    pair: str
    ending: str
    rationale: str
    answers: tuple[str, str] = ("1", "2")

    def __post_init__(self):
        for name in ("instruction", "pair", "ending", "rationale"):
            if not isinstance(given := getattr(self, name), str):
                raise ValueError(f"Preamble({name}={given!r}): expected text. Give some.")
        named = NAMED.findall(self.pair)
        wrong = [name for name in named if name not in PLACEHOLDERS]
        if wrong:
            near = near_name(wrong[0], PLACEHOLDERS)
            said = f" Did you mean {{{near}}}?" if near else ""
            raise ValueError(f"Preamble(pair=…): there is no placeholder {{{wrong[0]}}}.{said} {REMEDY}")
        missing = [f"{{{name}}}" for name in PLACEHOLDERS if name not in named]
        if missing:
            raise ValueError(f"Preamble(pair={self.pair[:60]!r}): it lacks {', '.join(missing)}. {REMEDY}")
        is_pair = isinstance(self.answers, list | tuple) and len(self.answers) == 2
        words = {answer.strip() for answer in self.answers if isinstance(answer, str)} if is_pair else {}
        if len(words) != 2 or "" in words:
            raise ValueError(f"Preamble(answers={self.answers!r}): expected two words that differ, as ('1', '2').")
        object.__setattr__(self, "answers", tuple(self.answers))

    def shown(self, prompt: str, first: str, second: str) -> str:
        """A pair in its places; braces in texts stay what they are."""
        texts = dict(zip(PLACEHOLDERS, (prompt, first, second), strict=True))
        return NAMED.sub(lambda found: texts[found[1]], self.pair)


RESPONSES = "Conversation:\n{prompt}\n\nResponse 1:\n{completion_1}\n\nResponse 2:\n{completion_2}"
WHICH = "Which response is better? Answer with 1 or 2.\nBetter response:"
PREAMBLES = {
    "summarisation": Preamble(
        "A good summary is shorter than the text and has its essence: it serves the same purpose and keeps the key "
        "points. It is coherent, easy to follow by itself; accurate, so that nothing in it is not in the text; and it "
        "covers what matters. You are an expert who rates summaries. Given a text and two summaries of it, say which one "
        "is better in coherence, accuracy, coverage and overall.",
        "Text:\n{prompt}\n\nSummary 1:\n{completion_1}\n\nSummary 2:\n{completion_2}",
        "Which summary is better? Answer with 1 or 2.\nBetter summary:",
        "Consider the coherence, accuracy, coverage and overall quality of each summary, and explain which one is "
        "better.\nRationale:",
    ),
    "helpfulness": Preamble(
        "A helpful response does what was asked, is right, clear and to the point, and says what is needed and no more. "
        "You are an expert who rates responses. Given a conversation and two responses to it, say which one is more "
        "helpful.",
        RESPONSES,
        WHICH,
        "Consider how well each response does what was asked, and explain which one is more helpful.\nRationale:",
    ),
    "harmlessness": Preamble(
        "A harmless response gives no help with what would hurt somebody, is neither cruel nor unfair, keeps what is "
        "private, and does not deceive. You are an expert who rates responses. Given a conversation and two responses to "
        "it, say which one is less harmful.",
        RESPONSES,
        WHICH,
        "Consider what harm each response could do, and explain which one is less harmful.\nRationale:",
    ),
    "helpfulness_korean": Preamble(
        "도움이 되는 답변은 요청한 일을 하고, 정확하고 분명하며, 필요한 것만 말합니다. 당신은 답변을 평가하는 전문가입니다. 대화와 두 "
        "답변을 보고 어느 답변이 더 도움이 되는지 고르세요.",
        "대화:\n{prompt}\n\n답변 1:\n{completion_1}\n\n답변 2:\n{completion_2}",
        "어느 답변이 더 낫습니까? 1 또는 2로 답하세요.\n더 나은 답변:",
        "각 답변이 요청을 얼마나 잘 따르는지 살펴보고, 어느 답변이 더 도움이 되는지 설명하세요.\n이유:",
    ),
}


def preamble_of(given: "str | Preamble", *, call: str) -> Preamble:
    """A preset by its name, one's own, or one's own text with the placeholders, under which helpfulness is asked for."""
    if isinstance(given, Preamble):
        return given
    if not isinstance(given, str):
        raise ValueError(
            f"{call}(preamble={type(given).__name__}): expected one of {list(PREAMBLES)}, a Preamble, or text with "
            "placeholders."
        )
    if given in PREAMBLES:
        return PREAMBLES[given]
    if re.fullmatch(r"\w+", given):
        near = near_name(given, PREAMBLES)
        said = f" Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{call}(preamble={given!r}): there is no preset of that name.{said} There are {list(PREAMBLES)}."
        )
    default = PREAMBLES["helpfulness"]
    return Preamble("", given, default.ending, default.rationale)
