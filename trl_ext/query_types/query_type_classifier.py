"""Query types by the words of a query: a table of weights that is shipped, or one's own."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import exp, sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trl_ext.query_types.labels import Label, label_of
from trl_ext.query_types.query_features import BUCKETS, counts, letter_words, scripts, word_number, words
from trl_ext.trainer_kit.whole_files import written_whole

SHIPPED = Path(__file__).parent / "query_types.safetensors"
KIND = "trl_ext query types, 2"  # what the metadata of a weights file says of itself
FOREIGN = "in a script or language that the classifier was not trained on"
EMPTY = "without any word"
FEW = "with too few words that the classifier knows"
REMEDY = "Give one that examples/query_types/train_classifier.py has written."


@dataclass(frozen=True, eq=False)
class QueryTypeClassifier:
    """Logistic regression on words and pairs of words, a millisecond per query.

        p(open) = σ(b + Σ w_j · x_j / ‖x‖),  x_j = (1 + log n_j) · idf_j

    It abstains on what it has not learned: a query most of whose letters are of other scripts, or few of whose words it knows,
    in number or as a share: most other languages in the same letters, a lone word, marks.

    >>> classifier = QueryTypeClassifier.load()
    >>> [round(classifier.p_open(query)) for query in ("Write a poem about the sea.", "What is the capital of Peru?")]
    [1, 0]

    Args:
        weights, idf: w, times the slope of the calibration, and idf of each bucket, `(BUCKETS,)`.
        vocabulary: Numbers of the words that it was trained on, sorted, uint32, `(V,)`; a bucket may have been hit by another.
        bias: b, calibrated.
        scripts: Those of the queries that it was trained on.
        known: Least share of a query's words that it must know, in [0, 1].
        fewest: Least number of them.
        threshold: Confidence below which it abstains by default, in [0.5, 1].
    """

    weights: np.ndarray
    idf: np.ndarray
    vocabulary: np.ndarray
    bias: float
    scripts: tuple[str, ...] = ("LATIN",)
    known: float = 0.0
    fewest: int = 1
    threshold: float = 0.5
    needs_file = False

    @cached_property
    def name(self) -> str:
        """By all that its labels depend on."""
        tensors = (self.weights.astype(np.float16), self.idf.astype(np.float16), self.vocabulary)
        return f"classifier {crc32(b''.join([*(each.tobytes() for each in tensors), self._settings().encode()])):08x}"

    @classmethod
    def load(cls, path: str | Path | None = None) -> "QueryTypeClassifier":
        """The shipped one, or that of a file that `save` has written."""
        return _read(Path(path or SHIPPED).expanduser())

    def save(self, path: str | Path) -> None:
        tensors = {"weights": self.weights.astype(np.float16), "idf": self.idf.astype(np.float16)}
        tensors["vocabulary"] = self.vocabulary.astype(np.uint32)
        with written_whole(Path(path)) as partial:
            save_file(tensors, partial, metadata={"kind": KIND, "settings": self._settings()})

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        for i, query in enumerate(queries):
            yield i, self._label(query)

    def p_open(self, query: str) -> float:
        """The probability that a query is open, whatever it is written in."""
        found = {place: value * float(self.idf[place]) for place, value in counts(query).items()}
        norm = sqrt(sum(value * value for value in found.values())) or 1.0
        logit = self.bias + sum(float(self.weights[place]) * value for place, value in found.items()) / norm
        return 1 / (1 + exp(-max(min(logit, 50.0), -50.0)))

    def known_share(self, query: str) -> float:
        """Share of a query's words of letters that were in the queries it was trained on; 0 of none."""
        found = letter_words(query)
        return self._known(found) / len(found) if found else 0.0

    def _known(self, found: list[str]) -> int:
        return sum(word_number(word) in self._numbers for word in found)

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self.vocabulary.tolist())

    def _settings(self) -> str:
        names = ("bias", "scripts", "known", "fewest", "threshold")
        return json.dumps({name: getattr(self, name) for name in names})

    def _label(self, query: str) -> Label:
        if not words(query):
            return Label(None, None, EMPTY)
        letters = scripts(query)
        own = sum(letters[script] for script in self.scripts)
        if 2 * own < letters.total() or self.known_share(query) < self.known:
            return Label(None, None, FOREIGN if letters else FEW)
        if self._known(letter_words(query)) < self.fewest:
            return Label(None, None, FEW)
        return label_of(self.p_open(query))


def _read(path: Path) -> QueryTypeClassifier:
    try:
        with safe_open(path, "numpy") as file:
            kind, settings = (
                (file.metadata() or {}).get("kind"),
                json.loads((file.metadata() or {}).get("settings", "{}")),
            )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{_asked(path)} it cannot be read ({str(error).splitlines()[0]}). {REMEDY}") from error
    shapes = {name: values.shape for name, values in tensors.items()}
    words_known = shapes.pop("vocabulary", ())
    if kind != KIND or shapes != dict.fromkeys(("weights", "idf"), (BUCKETS,)) or len(words_known) != 1:
        raise ValueError(f"{_asked(path)} it holds something else, the tensors {shapes}. {REMEDY}")
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise ValueError(f"{_asked(path)} some of its numbers are not finite. {REMEDY}")
    settings["scripts"] = tuple(settings["scripts"])
    tables = {name: tensors[name].astype(np.float32) for name in ("weights", "idf")}
    return QueryTypeClassifier(**tables, vocabulary=tensors["vocabulary"].astype(np.uint32), **settings)


def _asked(path: Path) -> str:
    return f"QueryTypeClassifier.load({str(path)!r}): expected a file of its weights, and"
