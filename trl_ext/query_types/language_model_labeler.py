"""Query types by the log-probabilities that a causal LM gives two options."""

import os
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import exp

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.query_types.labels import Label, label_of
from trl_ext.query_types.query_questions import LONGEST, ORDERS, asked_by, question, question_text
from trl_ext.sequences.causal_lms import Model, causal_lm, model_key
from trl_ext.sequences.option_log_probs import Choice, choice_log_probs, option_ids
from trl_ext.sequences.query_type_column import TYPES
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.config_checks import checked, checked_list
from trl_ext.trainer_kit.option_rules import AT_LEAST_1


class LanguageModelLabeler:
    """Asks a causal LM, without sampling, which of two letters names the type of a query.

        logit p(open) = ½ Σ over both orders of (log p(letter of open) − log p(letter of closed))

    A liking for one letter cancels over the orders. With a chat template the question is a user's turn, else it is text.
    `trl_ext.query_types.QUESTION` is what is asked. Small base models answer little better than chance: look at some.

    Args:
        model: A causal LM, or its path or hub id.
        tokenizer: None: the one beside the model.
        examples: Queries with their types that are shown before each question.
        batch_size: Queries of a pass, in either order after the other.

    Attributes:
        tokens: Read so far, in either order.
    """

    threshold = 0.5
    needs_file = False

    def __init__(
        self,
        model: Model | str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        examples: Sequence[tuple[str, str]] = (),
        batch_size: int = 8,
    ):
        call = "LanguageModelLabeler"
        self.model, place = causal_lm(model, call=call)
        self.tokenizer = tokenizer or tokenizer_beside(place, call=call)
        self.examples = _checked_examples(examples, call=call)
        self.tokens = 0
        self.batch_size = checked(call, "batch_size", batch_size, int, AT_LEAST_1)

    @property
    def name(self) -> str:
        """By the weights and adapters as they are now, wherever they were loaded from."""
        return f"language model {model_key(self.model, self.tokenizer):08x} {asked_by(self.examples)}"

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        """A query that the model's window does not hold loses its end, which is warned of."""
        cut = []
        for start in range(0, len(queries), self.batch_size):
            own = queries[start : start + self.batch_size]
            fitted = [self._fitted(query) for query in own]
            cut += [query for query, short in zip(own, fitted, strict=True) if short != query]
            for i, p_open in enumerate(self._p_open(fitted), start):
                yield i, label_of(p_open)
        if cut:
            warnings.warn(
                f"LanguageModelLabeler: {len(cut)} of {len(queries)} queries, e.g. {cut[0][:40]!r}, lost their end, to fit the "
                "model's window. Shorten them, give fewer examples, or take a model of a larger window.",
                stacklevel=2,
            )

    def _fitted(self, query: str) -> str:
        """As much of its beginning as fits the window in both orders; all of it, where that does."""
        window, shown = model_window(self.model.config), query[:LONGEST]

        def fits(length: int) -> bool:
            choices = (self._choice(shown[:length], order) for order in ORDERS)
            return max(len(choice.context) + max(map(len, choice.options)) for choice in choices) <= window

        if window is None or fits(len(shown)):
            return query
        longest = bisect_left(range(1, len(shown)), True, key=lambda length: not fits(length))
        if not longest:
            raise ValueError(
                f"LanguageModelLabeler: the model's window of {window} tokens does not hold the question about {query[:40]!r}. "
                "Give fewer examples, or a model of a larger window."
            )
        return shown[:longest]

    def _p_open(self, queries: list[str]) -> list[float]:
        first, second = (
            self._odds(queries, order) for order in ORDERS
        )  # of A, where it is open, and where it is closed
        logits = ((first - second) / 2).tolist()
        self._check_numbers(queries, logits)
        return [1 / (1 + exp(-max(min(logit, 50.0), -50.0))) for logit in logits]

    def _odds(self, queries: list[str], order: tuple[str, str]) -> Tensor:
        """log p(A) − log p(B); all questions of an order begin alike, which is read once."""
        choices = [self._choice(query, order) for query in queries]
        self.tokens += sum(len(choice.context) for choice in choices)
        return choice_log_probs(self.model, choices, batch_size=len(choices)).mv(torch.tensor([1.0, -1.0]).double())

    def _check_numbers(self, queries: list[str], logits: list[float]) -> None:
        bad = [query for query, logit in zip(queries, logits, strict=True) if logit != logit]
        if bad:
            raise ValueError(
                f"LanguageModelLabeler: the model gives NaN for {len(bad)} of {len(queries)} queries, the first is "
                f"{bad[0][:60]!r}. Load it in fp32 or bf16, or take another."
            )

    def _choice(self, query: str, order: tuple[str, str]) -> Choice:
        if self.tokenizer.chat_template is None:
            return option_ids(question_text(query, order, self.examples), (" A", " B"), self.tokenizer)
        return option_ids(question(query, order, self.examples), "AB", self.tokenizer)


def _checked_examples(examples: Sequence[tuple[str, str]], *, call: str) -> tuple[tuple[str, str], ...]:
    for example in checked_list(examples, call=f"{call}(examples=…)"):
        is_pair = isinstance(example, list | tuple) and len(example) == 2
        if not (is_pair and isinstance(example[0], str) and example[1] in TYPES):
            raise ValueError(
                f"{call}(examples=[{example!r}, …]): expected pairs of a query and its type, one of {list(TYPES)}. "
                "Mend that one."
            )
    return tuple((query, kind) for query, kind in examples)
