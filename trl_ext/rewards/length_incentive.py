from dataclasses import dataclass

from trl_ext.sequences.texts import Tokenize, tokens_of, wordpunct
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule

TOKENS_PER_POINT = 100


@dataclass(frozen=True, kw_only=True)
class LengthIncentive:
    """Length of a completion, for questions where saying more is worth more (R³, arXiv:2402.03469).

        LI = number of tokens / 100

    Without a cap it also rewards never stopping: multiply it by what length must not buy. With one, LI = min(tokens, cap) /
    100: what is enough for an answer earns all that length can, and filler behind it nothing.

    >>> LengthIncentive()(completions=["One, two, three.", ""])
    [0.06, 0.0]
    >>> LengthIncentive(cap=4)(completions=["One.", "One, two, three."])  # 2 of 4 tokens, and 6 of 4
    [0.02, 0.04]

    What is a token differs by language. By default a Chinese or Japanese sentence is one, and a Hindi or Thai word is cut
    at its vowel signs:

    >>> from trl_ext import characters, graphemes, unicode_wordpunct
    >>> LengthIncentive()(completions=["학교가 좋다."])  # Korean: 학교가 · 좋다 · . ; particles stay, as in the paper's \\w+
    [0.03]
    >>> LengthIncentive(tokenize=characters)(completions=["猫が好き。", "我很好。"])  # Japanese 猫·が·好·き·。, Chinese 我·很·好·。
    [0.05, 0.04]
    >>> LengthIncentive(tokenize=unicode_wordpunct)(completions=["नमस्ते दुनिया।"])  # Hindi: नमस्ते · दुनिया · ।
    [0.03]
    >>> LengthIncentive(tokenize=graphemes)(completions=["สวัสดีครับ"])  # Thai: ส · วั · ส · ดี · ค · รั · บ
    [0.07]

    Args:
        tokenize: Function from text to a list of tokens; one that pickles, so no lambda. The default, `wordpunct`, counts
            words and runs of punctuation. Beside those above, a morpheme tokenizer (Korean particles, Thai words) or a
            language model's `tokenizer.tokenize` will do. Counts of two tokenizers do not compare.
        cap: Tokens, of `tokenize`, beyond which length earns no more. None: the paper's form, without an end.
    """

    tokenize: Tokenize = wordpunct
    cap: int | None = None

    name = "length_incentive"

    def __post_init__(self):
        rule = Rule(above=0, expected="a positive number of tokens, or None")
        object.__setattr__(self, "cap", checked("LengthIncentive", "cap", self.cap, int | None, rule))

    def __call__(self, *, completions: list, **kwargs) -> list[float]:
        counts = [len(tokens_of(completion, self.tokenize)) for completion in completions]
        return [(count if self.cap is None else min(count, self.cap)) / TOKENS_PER_POINT for count in counts]
