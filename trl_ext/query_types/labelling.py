"""Query types of a data set, by whoever gives them."""

import os
import warnings
from collections import Counter
from statistics import median

from datasets import Dataset, Value

from trl_ext.generation.endpoint_errors import RefusedRequest, shown_prompt
from trl_ext.query_types.kept_labels import KeptLabels
from trl_ext.query_types.labels import Label, Labeler, is_label
from trl_ext.query_types.query_type_classifier import EMPTY, QueryTypeClassifier
from trl_ext.sequences.prompt_rows import as_dataset, check_prompts, lacks_prompts
from trl_ext.sequences.query_type_column import check_query_types
from trl_ext.sequences.texts import last_user_texts
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.kept_lines import kept_file
from trl_ext.trainer_kit.option_rules import Rule

COLUMNS = ("query_type", "query_type_confidence")
SHARE = Rule(0, 1, expected="a probability in [0, 1], or None for the labeler's own")
OTHERS = (
    "Ask one that may know more, labeler=LanguageModelLabeler(model) or EndpointLabeler(…): rows that have a type keep it. Or "
    "{lower}leave them out: dataset.filter(lambda row: row['query_type'] is not None)."
)
OWN_TYPE = "Leave that row out, or give its `query_type` yourself: rows that have a type keep it."
GUESSED, FEW = 0.55, 10  # a median confidence below the first, of so many labels, is said
UNSURE = "less sure than threshold="  # the one reason that a lower threshold does away with


def label_query_types(
    dataset: Dataset | list[dict],
    labeler: Labeler | str | os.PathLike | None = None,
    *,
    threshold: float | None = None,
    keep: str | os.PathLike | None = None,
    relabel: bool = False,
    column: str = "prompt",
) -> Dataset:
    """The data set with the columns `query_type`, which R³ routes by, and `query_type_confidence`, in [0.5, 1].

    'closed': one answer is right, and a reference answer shows which; 'open': many differ and are good; None: not known.
    Of messages, the last user turn is judged. Equal queries are judged once.

    >>> rows = Dataset.from_dict({"prompt": ["Write a story about a fox.", "How many legs has a spider?"]})
    >>> label_query_types(rows)["query_type"][:]
    ['open', 'closed']

    Args:
        dataset: With prompts, text or messages; or a list of rows.
        labeler: None: the shipped classifier, for English. The path of weights that `train_classifier.py` has written,
            *.safetensors. A `LanguageModelLabeler`, or the path or hub id of a causal LM. An `EndpointLabeler`.
        threshold: Confidence below which there is no type; None: the labeler's own, of LMs and endpoints 0.5.
        keep: A .jsonl file to which labels are written as they come: the same call goes on after a kill or an error, and
            asks for the missing ones alone. An `EndpointLabeler` needs it.
        relabel: Whether rows that have a type get another; otherwise they keep it.
        column: With the prompts.
    """
    call = "label_query_types"
    dataset = as_dataset(dataset, call=call)
    queries, types = _checked_columns(dataset, column, call)
    if not relabel:
        check_query_types(types, call=call)
    labeler = _labeler(labeler, call)
    least = checked(call, "threshold", threshold, float | None, SHARE)
    least = labeler.threshold if least is None else least
    kept = KeptLabels(kept_file(keep, labeler=labeler.name, needed=labeler.needs_file, call=call), labeler.name)
    asked = [i for i in range(len(queries)) if relabel or types[i] is None]
    try:
        labels = _labels(labeler, [queries[i] for i in asked], kept)
    except RefusedRequest as error:
        raise _of_row(error, queries, asked, call) from None
    given = {i: _above(labels[queries[i]], least) for i in asked}
    _warn_of_none(given, call)
    _warn_of_guesses(given, call)
    return _with_columns(dataset, types, given)


def _checked_columns(dataset: Dataset, column: str, call: str) -> tuple[list[str], list[str | None]]:
    """The queries, and the types that they have."""
    if column not in dataset.column_names:
        if column == "prompt":
            raise lacks_prompts(dataset.column_names, call=f"{call}: the data set")
        raise ValueError(f"{call}(column={column!r}): the data set has {dataset.column_names}. Name one of these.")
    rows = dataset.with_format(None)
    check_prompts(rows[column][:], call=call, column=column)
    types = rows["query_type"][:] if "query_type" in rows.column_names else [None] * len(rows)
    return last_user_texts(rows[column][:], range(len(rows))), types


def _labeler(labeler: Labeler | str | os.PathLike | None, call: str) -> Labeler:
    if labeler is None:
        return QueryTypeClassifier.load()
    if isinstance(labeler, str | os.PathLike):
        if os.fspath(labeler).endswith(".safetensors"):
            return QueryTypeClassifier.load(labeler)
        if os.path.isfile(os.path.expanduser(labeler)):
            raise ValueError(
                f"{call}(labeler={os.fspath(labeler)!r}): expected weights that train_classifier.py has written, *.safetensors, "
                "or a model's folder or hub id. Name the file so, or give one of these."
            )
        from trl_ext.query_types.language_model_labeler import LanguageModelLabeler

        return LanguageModelLabeler(labeler)
    if not callable(getattr(labeler, "label", None)):
        raise ValueError(
            f"{call}(labeler={type(labeler).__name__}): expected None, a path, a LanguageModelLabeler or an EndpointLabeler. "
            "Of a model, give LanguageModelLabeler(model, tokenizer)."
        )
    return labeler


def _labels(labeler: Labeler, queries: list[str], kept: KeptLabels) -> dict[str, Label]:
    """Of each query once: what was kept, and the rest as it comes."""
    found = {query: kept.of(query) for query in queries}
    found |= {query: Label(None, None, EMPTY) for query in queries if not query.strip()}
    missing = [query for query, label in found.items() if label is None]
    for i, label in labeler.label(missing):
        if not is_label(*label):
            raise ValueError(
                f"label_query_types(labeler={type(labeler).__name__}): expected 'open', 'closed' or None with a confidence "
                f"in [0.5, 1], got {label} for {missing[i][:60]!r}. Mend the labeler."
            )
        found[missing[i]] = label
        if label.confidence is not None:  # else nothing was said of it, and the next call may ask again
            kept.add(missing[i], label)
    return found


def _of_row(error: RefusedRequest, queries: list[str], asked: list[int], call: str) -> RefusedRequest:
    """A server's refusal, with the row that it is of, where the labeler says what it asked for."""
    rows = [i for i in asked if queries[i] == error.item]
    return error.of(f"{call}: row {rows[0]}, {shown_prompt(error.item)}", OWN_TYPE) if rows else error


def _above(label: Label, threshold: float) -> Label:
    """The label, without its type where it is not sure enough."""
    if label.query_type is None or label.confidence >= threshold:
        return label
    return Label(None, label.confidence, f"{UNSURE}{threshold:g}")


def _warn_of_none(given: dict[int, Label], call: str) -> None:
    reasons = Counter(label.reason for label in given.values() if label.query_type is None)
    if reasons:
        first = next(i for i, label in given.items() if label.query_type is None)
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        others = OTHERS.format(lower="lower `threshold`, or " if any(UNSURE in reason for reason in reasons) else "")
        warnings.warn(
            f"{call}: {reasons.total()} of {len(given)} queries, e.g. that of row {first}, got no type: {said}. {others}",
            stacklevel=3,
        )


def _warn_of_guesses(given: dict[int, Label], call: str) -> None:
    """Where labels are little surer than a coin's, which no threshold says of itself."""
    sure = [label.confidence for label in given.values() if label.query_type is not None]
    if len(sure) >= FEW and (middle := median(sure)) < GUESSED:
        warnings.warn(
            f"{call}: half of {len(sure)} types have a confidence of at most {middle:.3f}, where 0.5 is a coin's: the labeler "
            "hardly tells open queries from closed ones. Ask a larger one, or raise `threshold`.",
            stacklevel=3,
        )


def _with_columns(dataset: Dataset, types: list[str | None], given: dict[int, Label]) -> Dataset:
    rows = range(len(dataset))
    had = COLUMNS[1] in dataset.column_names
    sure = dataset.with_format(None)[COLUMNS[1]][:] if had else [None for _ in rows]
    values = {
        COLUMNS[0]: [given[i].query_type if i in given else types[i] for i in rows],
        COLUMNS[1]: [given[i].confidence if i in given else sure[i] for i in rows],
    }
    dataset = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    for name, kind in zip(COLUMNS, ("string", "float64"), strict=True):
        dataset = dataset.add_column(name, values[name], feature=Value(kind))
    return dataset
