from dataclasses import dataclass

from trl_ext.sequences.texts import Tokenize, tokens_of, wordpunct
from trl_ext.trainer_kit.config_checks import check_config


@dataclass(frozen=True, kw_only=True)
class RepetitionPenalty:
    """Share of a completion's n-grams that are distinct: 1 says everything once, near 0 is a loop (arXiv:2402.03469).

        RP = number of distinct n-grams / number of n-grams, 1 where there is none

    >>> RepetitionPenalty(ngram=2)(completions=["a b c d", "no no no no no"])
    [1.0, 0.25]

    A sentence said twice, in each language with what cuts it well, as in `LengthIncentive`:

    >>> from trl_ext import characters, graphemes, unicode_wordpunct
    >>> RepetitionPenalty()(completions=["좋다. 좋다. 좋다."])  # Korean: 좋다·.·좋다 .·좋다·. [좋다·.·좋다] [.·좋다·.]
    [0.5]
    >>> RepetitionPenalty(tokenize=characters)(completions=["猫だ。猫だ。"])  # Japanese: 猫だ。 だ。猫 。猫だ [猫だ。]
    [0.75]
    >>> RepetitionPenalty(tokenize=characters)(completions=["我好。我好。"])  # Chinese: 我好。 好。我 。我好 [我好。]
    [0.75]
    >>> RepetitionPenalty(tokenize=unicode_wordpunct)(completions=["नमस्ते। नमस्ते। नमस्ते।"])  # Hindi, as the Korean one
    [0.5]
    >>> RepetitionPenalty(tokenize=graphemes)(completions=["ดีครับ ดีครับ"])  # Thai, ดี·ค·รั·บ twice: 4 of 6
    [0.6666666666666666]

    Args:
        ngram: Tokens per n-gram; 3 in the paper. Larger overlooks more: only longer loops count.
        tokenize: Function from text to a list of tokens, as in `LengthIncentive`.
    """

    ngram: int = 3
    tokenize: Tokenize = wordpunct

    name = "repetition_penalty"

    def __post_init__(self):
        check_config(self, {})
        if self.ngram < 1:
            raise ValueError(
                f"RepetitionPenalty(ngram={self.ngram!r}): an n-gram has at least 1 token, and whole ones. Use 3, as R³ does."
            )

    def __call__(self, *, completions: list, **kwargs) -> list[float]:
        return [self._distinct_share(tokens_of(completion, self.tokenize)) for completion in completions]

    def _distinct_share(self, tokens: list[str]) -> float:
        ngrams = list(zip(*(tokens[i:] for i in range(self.ngram)), strict=False))
        return len(set(ngrams)) / len(ngrams) if ngrams else 1.0  # too short to repeat itself
