"""Rewards side by side, as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from trl_ext.reward_evaluation.reward_findings import Findings
from trl_ext.sequences.texts import last_user_text, text_of
from trl_ext.trainer_kit.whole_text import cut

SHOWN = 120  # characters of a text that are shown


def rewards_tables(evaluations: Sequence[Findings], *, worst: int) -> list[Table]:
    """Accuracy by group; what else is measured; differences from the first; each one's worst pairs."""
    first, *others = evaluations
    tables = [accuracies_table(evaluations), measures_table(evaluations)]
    tables += [differences_table(other, first) for other in others]
    return tables + [worst_table(each, worst) for each in evaluations if worst and each.worst]


def accuracies_table(evaluations: Sequence[Findings]) -> Table:
    """A line per group: accuracy and its 95 % interval, of how many rows; notes below."""
    title = "accuracy, with its 95 % interval (Wilson); ties count half"
    table = Table("", "rows", *(escape(each.name) for each in evaluations), "length only", "chance", title=title)
    table.title_justify = table.caption_justify = "left"
    for group in dict.fromkeys(group for each in evaluations for group in each.groups):
        entry = next(each.groups[group] for each in evaluations if group in each.groups)
        cells = (_interval(each.groups.get(group, {})) for each in evaluations)
        table.add_row(escape(group), str(entry["rows"]), *cells, _short(entry, "length_only"), _short(entry, "chance"))
    notes = [f"{each.name}: {note}." for each in evaluations for note in each.notes]
    table.caption = escape("\n".join(notes)) or None
    return table


def measures_table(evaluations: Sequence[Findings]) -> Table:
    """A line per measure, a column per reward."""
    table = Table(
        "", *(escape(each.name) for each in evaluations), title="calibration and length", title_justify="left"
    )
    lines = {
        "ECE of σ(Δ)": ("ece", "ece_error"),
        "ECE if calibrated": ("ece_if_calibrated", None),
        "log-loss of σ(Δ), nats": ("log_loss", None),
        "score ~ length, r": ("score_length_correlation", "score_length_correlation_error"),
        "Δscore ~ Δlength, r": ("difference_length_correlation", "difference_length_correlation_error"),
        "accuracy, chosen is shorter": ("accuracy_chosen_shorter", None),
        "… of rows": ("rows_chosen_shorter", None),
    }
    for title, (name, error) in lines.items():
        table.add_row(title, *(_cell(each.summary, name, error) for each in evaluations))
    of_model = {
        "logistic: length": ("length", "length_error"),
        "logistic: score": ("score", "score_error"),
        "accuracy, length alone → with score": ("accuracy_length", "accuracy_both"),
        "the score adds, accuracy": ("accuracy_gain", "accuracy_gain_error"),
        "log-loss, length alone → with score": ("log_loss_length", "log_loss_both"),
        "the score adds, nats": ("log_loss_gain", "log_loss_gain_error"),
    }
    for title, (name, error) in of_model.items():
        between = " → " if "→" in title else " ± "
        table.add_row(title, *(_cell(each.beyond_length or {}, name, error, between) for each in evaluations))
    return table


def differences_table(evaluation: Findings, first: Findings) -> Table:
    """What differs on the same rows, and whether so many could have shown it."""
    title = f"{escape(evaluation.name)} less {escape(first.name)}"
    table = Table("", "difference", "seen from", "", title=title, title_justify="left")
    for measure, found in evaluation.compare(first).items():
        resolved = "" if abs(found["difference"]) >= found["detectable"] else "not resolved"
        said = "equal" if found["difference"] == found["error"] == 0 else resolved
        difference = f"{found['difference']:+.3f} ± {found['error']:.3f}"
        table.add_row(escape(measure), difference, f"{found['detectable']:.3f}", said)
    return table


def worst_table(evaluation: Findings, count: int) -> Table:
    """The pairs that it gets most wrong."""
    title = f"most wrong: {escape(evaluation.name)}"
    table = Table("row", "Δ", "prompt", "chosen", "rejected", title=title, title_justify="left", show_lines=True)
    for pair in evaluation.worst[:count]:
        texts = [_prompt(pair["prompt"]), text_of(pair["chosen"]), text_of(pair["rejected"])]
        table.add_row(
            str(pair["row"]), f"{pair['gap']:.3g}", *(escape(cut(" ".join(text.split()), SHOWN)) for text in texts)
        )
    return table


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str) or any(message["role"] == "user" for message in prompt):
        return last_user_text(prompt)
    return ""


def _interval(entry: dict[str, Any]) -> str:
    if entry.get("accuracy") is None:
        return "·"
    return f"{entry['accuracy']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]".replace("[", r"\[")


def _short(entry: dict[str, Any], name: str) -> str:
    return "·" if entry.get(name) is None else f"{entry[name]:.3f}"


def _cell(found: dict[str, Any], name: str, error: str | None, between: str = " ± ") -> str:
    value, other = found.get(name), found.get(error) if error else None
    if value is None:
        return "·"
    shown = str(value) if isinstance(value, int) else f"{value:.3f}"
    return shown if other is None else f"{shown}{between}{other:.3f}"
