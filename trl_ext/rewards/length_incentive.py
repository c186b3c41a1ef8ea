from dataclasses import dataclass

from trl_ext.sequences.texts import Tokenize, tokens_of, wordpunct

TOKENS_PER_POINT = 100


@dataclass(frozen=True, kw_only=True)
class LengthIncentive:
    """Length of a completion, for questions where saying more is worth more (R³, arXiv:2402.03469).

        LI = number of tokens / 100

    There is no cap, so it also rewards never stopping: multiply it by what length must not buy.

    >>> LengthIncentive()(completions=["One, two, three.", ""])
    [0.06, 0.0]

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
    """

    tokenize: Tokenize = wordpunct

    name = "length_incentive"

    def __call__(self, *, completions: list, **kwargs) -> list[float]:
        return [len(tokens_of(completion, self.tokenize)) / TOKENS_PER_POINT for completion in completions]
