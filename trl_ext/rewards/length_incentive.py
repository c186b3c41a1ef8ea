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

    Args:
        tokenize: Function from text to a list of tokens; one that pickles, so no lambda. The default counts words and
            runs of punctuation. Where `\\w+` is too coarse, take `trl_ext.sequences.texts.characters`, a morpheme
            tokenizer or a language model's `tokenizer.tokenize`.
    """

    tokenize: Tokenize = wordpunct

    name = "length_incentive"

    def __call__(self, *, completions: list, **kwargs) -> list[float]:
        return [len(tokens_of(completion, self.tokenize)) / TOKENS_PER_POINT for completion in completions]
