"""Query types by a model behind any server that speaks OpenAI's protocol."""

from collections.abc import Iterator, Mapping
from typing import Any

from trl_ext.generation.asked_together import as_they_come
from trl_ext.generation.endpoint_errors import NoCompletion
from trl_ext.generation.endpoint_generator import EndpointGenerator
from trl_ext.generation.extra_fields import shown_fields
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.query_types.labels import Label
from trl_ext.query_types.query_questions import ORDERS, asked_by, question, type_of
from trl_ext.sequences.texts import text_of
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import AT_LEAST_1

UNCLEAR = "that the endpoint gave two different types, depending on the order of the options"
UNREAD = (
    "where the endpoint answered something else than a type, or nothing, as a model does that is cut while it thinks "
    "(give a larger max_tokens), and is asked again by the next call"
)


class _Server(EndpointGenerator):
    _maker = "EndpointLabeler"  # whom a user has called


class EndpointLabeler:
    """Asks a server twice per query, with the options in either order, at temperature 0; where it contradicts itself,
    there is no type.

    `label_query_types` writes each label down as it comes, so it must be told where: `keep=`.

    Args:
        model, base_url, api_key, timeout, max_retries, extra_body: As of `EndpointGenerator`.
        concurrency: Queries that are asked at a time.
        max_tokens: Longest answer; a model that thinks before it speaks needs hundreds.
    """

    threshold = 0.5
    needs_file = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 3,
        max_tokens: int = 16,
        extra_body: Mapping[str, Any] | None = None,
    ):
        call = "EndpointLabeler"
        self.concurrency = checked(call, "concurrency", concurrency, int, AT_LEAST_1)
        max_tokens = checked(call, "max_tokens", max_tokens, int, AT_LEAST_1)
        self._sampling = Sampling(num_generations=1, temperature=0.0, max_completion_length=max_tokens)
        self._server = _Server(
            model,
            base_url,
            api_key,
            concurrency=1,
            timeout=timeout,
            max_retries=max_retries,
            extra_body=extra_body,
        )

    @property
    def name(self) -> str:
        return f"{self._server.name} at {self._server.base_url} {asked_by()}{shown_fields(self._server.extra_body)}"

    @property
    def tokens(self) -> int:
        """Read and written so far, as the server counts them."""
        return self._server.tokens

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        """What was asked when the first request failed is waited for and given, then its error is raised."""
        return as_they_come(self._label, queries, concurrency=self.concurrency)

    def _label(self, query: str) -> Label:
        said = {self._answered(query, order) for order in ORDERS}
        if None in said:
            return Label(None, None, UNREAD)
        return Label(said.pop(), 1.0) if len(said) == 1 else Label(None, 0.5, UNCLEAR)

    def _answered(self, query: str, order: tuple[str, str]) -> str | None:
        part = Part(0, (0,), (question(query, order),))
        try:
            [(_, [sample])] = self._server.generate([part], self._sampling, Policy(None, None))
        except NoCompletion:
            return None
        return type_of(text_of(sample["completion"]), order)
