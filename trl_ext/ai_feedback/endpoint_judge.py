"""A labeler behind a server that speaks OpenAI's protocol."""

from collections.abc import Iterator
from functools import partial

from trl_ext.ai_feedback.judging import Answer
from trl_ext.ai_feedback.preference_questions import ORDERS, Question, Wording, context_number
from trl_ext.generation.asked_together import as_they_come
from trl_ext.generation.endpoint_log_probs import EndpointLogProbs
from trl_ext.generation.extra_fields import shown_fields
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.texts import Text, text_of


class EndpointJudge:
    """Asks a server about both orders of a pair, so many pairs at a time as it says.

    Args:
        server: Who gives log-probabilities, and rationales.
    """

    needs_file = True

    def __init__(self, server: EndpointLogProbs):
        self.server, self.chat = server, server.chat

    @property
    def name(self) -> str:
        asked = f"{'chat' if self.chat else 'text'} {self.server.listed}{shown_fields(self.server.extra_body)}"
        return f"{self.server.name} at {self.server.base_url} {asked}"

    def answers(
        self, questions: list[Question], wording: Wording, reasons: Sampling | None
    ) -> Iterator[tuple[int, Answer]]:
        ask = partial(self._log_probs, wording=wording, reasons=reasons)
        before = self.server.tokens
        for i, log_probs in as_they_come(ask, questions, concurrency=self.server.concurrency):
            now = self.server.tokens
            yield i, Answer(log_probs, now - before)
            before = now

    def _log_probs(self, question: Question, *, wording: Wording, reasons: Sampling | None) -> list[list[float]]:
        return [self._ordered(wording.context(question, order, self.chat), wording, reasons) for order in ORDERS]

    def _ordered(self, context: Text, wording: Wording, reasons: Sampling | None) -> list[float]:
        if reasons is not None:
            [(_, [sample])] = self.server.generate(
                [Part(0, (context_number(context),), (context,))], reasons, Policy(None, None)
            )
            context = wording.behind(context, text_of(sample["completion"]))
        return self.server.option_log_probs(context, wording.preamble.answers)
