"""Scores that are products of factors, which ones by the type of the query."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite, prod
from statistics import fmean
from typing import Protocol

from trl_ext.rewards.checked_reward import check_scores, distinct_names
from trl_ext.rewards.reward_columns import Columns, check_columns, check_counts, own_columns
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule

LogMetric = Callable[[str, float], None]
ByRow = dict[str, list[float | None]]  # of each factor's name: one value per completion, None where it was not asked
_WATCHED: ContextVar[list[ByRow] | None] = ContextVar("what factors gave", default=None)


@contextmanager
def watched_factors() -> Iterator[list[ByRow]]:
    """Inside, what the factors of each product that is called gave, completion by completion."""
    seen: list[ByRow] = []
    token = _WATCHED.set(seen)
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


class Factor(Protocol):
    """A reward function of TRL that never returns None, hashes, and has a name to be logged under."""

    name: str

    def __call__(self, *, completions: list, **columns) -> list[float]: ...


@dataclass(frozen=True)
class Route:
    """How a type of query is scored.

        score = scale · Π factors

    A product, because a factor of 0 must veto the rest: a long answer to another question earns nothing.

    Args:
        query_type: Value of the column `query_type`.
        factors: What to multiply.
        scale: Brings the routes of a product to one range. Group-normalised advantages (GRPO) do not feel it.
    """

    query_type: str
    factors: tuple[Factor, ...]
    scale: float = 1.0

    def __post_init__(self):
        scale = checked("Route", "scale", self.scale, float, Rule(fits=isfinite, expected="a finite number"))
        object.__setattr__(self, "scale", scale)


@dataclass(frozen=True)
class RoutedProduct:
    """Multiply the factors that a query's type asks for; a factor sees only its rows, and equal factors run once.

    Logs each factor's mean over the rows where it applied, as `r3/<name of the factor>`. The ablations of R³ are other
    routes, for instance neither relevance nor routing:

    >>> from trl_ext import LengthIncentive, RepetitionPenalty
    >>> factors = (LengthIncentive(), RepetitionPenalty())
    >>> control = RoutedProduct((Route("open", factors), Route("closed", factors)))
    >>> control(completions=["no no no no no", "Seoul."], query_type=["open", "closed"])  # .05 · 1/3, .02 · 1
    [0.016666666666666666, 0.02]

    Args:
        routes: One `Route` for each query type that the data set has.
    """

    routes: tuple[Route, ...]

    def __call__(
        self, *, query_type: list[str] | None = None, log_metric: LogMetric | None = None, **columns
    ) -> list[float]:
        check_counts({"query_type": query_type, **columns}, call=type(self).__name__)
        routes = self._routes_of(query_type, columns)
        values = self._factor_values(routes, columns)
        if (watching := _WATCHED.get()) is not None:
            watching.append(_by_row(values, len(routes)))
        if log_metric is not None:
            self._log(log_metric, values, columns)
        return [route.scale * prod(values[f][i] for f in route.factors) for i, route in enumerate(routes)]

    @property
    def column_readers(self) -> list[Factor]:
        """The factors of all routes, each once."""
        return list(dict.fromkeys(factor for route in self.routes for factor in route.factors))

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError for a query type without a route, and for what a factor lacks in the rows that ask for it."""
        kinds = columns.get("query_type")
        routes = self._routes_of(kinds if kinds is None else [kinds[i] for i in rows], columns, rows)
        for factor in self.column_readers:
            own = [i for i, route in zip(rows, routes, strict=True) if factor in route.factors]
            check_columns(factor, columns, own)

    def _factor_values(self, routes: list[Route], columns: dict) -> dict[Factor, dict[int, float]]:
        """Of each factor, its value in every row that asks for it."""
        values = {}
        for factor in dict.fromkeys(factor for route in routes for factor in route.factors):
            rows = [i for i, route in enumerate(routes) if factor in route.factors]
            own = take(columns, rows)
            scores = check_scores(factor(**own), own["completions"], factor.name, keep_invalid=True)
            self._refuse_none(scores, rows, factor)
            values[factor] = dict(zip(rows, scores, strict=True))
        return values

    def _refuse_none(self, scores: list[float | None], rows: list[int], factor: Factor) -> None:
        if None in scores:
            raise ValueError(
                f"{type(self).__name__}: its factor {factor.name!r} returned None for row {rows[scores.index(None)]}, and a "
                "product needs a number from each. Leave it out of that query type's route, or return 1.0."
            )

    def _log(self, log_metric: LogMetric, values: dict[Factor, dict[int, float]], columns: dict) -> None:
        for factor, of_row in values.items():
            log_metric(f"r3/{factor.name}", fmean(of_row.values()))

    def _routes_of(self, query_type: list | None, columns: Mapping, rows: Sequence[int] = ()) -> list[Route]:
        name, routes = type(self).__name__, {route.query_type: route for route in self.routes}
        if query_type is None:
            raise ValueError(
                f"{name} expected a column `query_type` with the values {list(routes)}, and got the columns "
                f"{sorted(own_columns(columns))}. Add it to the dataset, e.g. by "
                "trl_ext.label_query_types(dataset): it says how each query is scored."
            )
        place, unknown = next(
            ((i, kind) for i, kind in enumerate(query_type) if kind not in list(routes)), (None, None)
        )
        if place is not None:
            raise ValueError(
                f"{name} has no route for query type {unknown!r}; its routes are {list(routes)}. "
                f"{'Add one' if unknown is not None else NO_TYPE}, or fix the dataset's `query_type` column"
                f"{f', row {rows[place]}' if rows else ''}.{_advice(unknown, routes)}"
            )
        return [routes[kind] for kind in query_type]


NO_TYPE = (
    "Label such rows by label_query_types(dataset, labeler) with another labeler, which asks for them alone, leave them out: "
    "dataset.filter(lambda row: row['query_type'] is not None)"
)


def _by_row(values: dict[Factor, dict[int, float]], count: int) -> ByRow:
    names = distinct_names([factor.name for factor in values])
    return {name: [own.get(i) for i in range(count)] for name, own in zip(names, values.values(), strict=True)}


def _advice(kind: object, routes: Mapping[str, Route]) -> str:
    """What makes routes of types that differ in case or white space; '' where they differ in more."""
    if not isinstance(kind, str) or kind.strip().lower() not in routes:
        return ""
    return " It differs in case alone: dataset = dataset.map(lambda row: {'query_type': row['query_type'].strip().lower()})"


def take(columns: dict, rows: list[int]) -> dict:
    """The given rows of each column; what is no column, such as TRL's `trainer_state`, as it is.

    >>> take({"completions": ["a", "b", "c"], "trainer_state": None}, [0, 2])
    {'completions': ['a', 'c'], 'trainer_state': None}
    """
    return {
        name: [column[i] for i in rows] if isinstance(column, Sequence) else column for name, column in columns.items()
    }
