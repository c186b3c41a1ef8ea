"""A plan in the terminal: terms by phase, a bar per phase against the card, the verdict, and what would help."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.memory_planning.plan_advice import Advice
from trl_ext.memory_planning.planning import CAVEAT, GIB, MemoryPlan
from trl_ext.memory_planning.time_bounds import TimeBound

BAR = 40  # columns of a full card
NAMES = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
COLOURS = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def print_plan(
    plan: MemoryPlan, card: int | None, *, card_name: str, flag: str = "--gpu", time: TimeBound | None = None
) -> None:
    """Write it out to the terminal.

    Args:
        plan: To show.
        card: Bytes of the card; None: without verdict.
        card_name: What to call it.
        flag: By which the command is given a card. With another than `trl-ext plan`'s, which alone has a flag for each
            change, advice names the config's options only.
        time: What it takes at least; None: nothing is said of time.
    """
    console = Console()
    console.print(terms_table(plan))
    said = "." if time else ". Time is not predicted."
    console.print(f"Predicted by arithmetic from the model's shape, {CAVEAT}{said}", style="dim")
    for what in plan.assumed:
        console.print(f"Assumed: {what}.", style="yellow")
    if plan.paged:
        console.print(f"{size(plan.paged)} GiB of optimiser state wait in the computer's memory.")
    if plan.waiting:
        each = ", ".join(f"{name} {size(number)}" for name, number in plan.waiting.items())
        total = size(sum(plan.waiting.values()))
        console.print(f"{total} GiB wait in the computer's memory when vLLM's turn begins: {each}.")
    if plan.read_first:
        console.print(
            f"Each of the {plan.settings.num_gpus} processes first reads {size(plan.read_first)} GiB into the computer's memory."
        )
    console.print()
    console.print(bars(plan, card))
    if time:
        print_time(time, console)
    if card is None:
        console.print(f"\nNo card here to compare with: give {flag}, e.g. {flag} 24GB.")
        return
    verdict = plan.verdict(card)
    console.print(
        Text.assemble(
            f"\n{card_name}, {size(card)} GiB: ",
            (verdict, f"bold {COLOURS[verdict]}"),
            f" (peak {size(plan.peak)} GiB in {plan.peak_phase})",
        )
    )
    if verdict != "fits":
        print_advice(plan.advice(card), console, flags=flag == "--gpu")


def terms_table(plan: MemoryPlan) -> Table:
    """Terms in rows, phases in columns, GiB."""
    s = plan.settings
    kind = f"{s.bits}-bit" if s.bits else s.dtype
    lengths = f"{s.batch} × ({s.prompt_length} + {s.completion_length}) tokens"
    cards = f", each of {s.num_gpus} cards under {NAMES[s.shard]}" if s.shard else ""
    table = Table(title=f"{s.method} on {plan.shape.name}, {kind}, {lengths}{cards}: GiB", title_justify="left")
    table.add_column("at the largest moment", no_wrap=True)
    for name in plan.phases:
        table.add_column(name, justify="right", no_wrap=True)
    terms = list(dict.fromkeys(term for phase in plan.phases.values() for term in phase.terms))
    for term in sorted(terms, key=lambda term: "assumed" in term):  # these last
        table.add_row(term, *(size(phase.terms.get(term, 0)) for phase in plan.phases.values()))
    table.add_section()
    table.add_row("sum", *(size(phase.bytes) for phase in plan.phases.values()), style="bold")
    return table


def bars(plan: MemoryPlan, card: int | None) -> Text:
    """One bar per phase; `|` is where the card ends."""
    largest = max(plan.peak, card or 0)
    end = None if card is None else round(BAR * card / largest)
    lines = Text()
    for name, phase in plan.phases.items():
        bar = "█" * max(1, round(BAR * phase.bytes / largest))
        colour = "cyan" if card is None or phase.bytes <= card else "red"
        row = bar.ljust(BAR)
        row = row if end is None else f"{row[:end]}|{row[end:]}"
        lines.append(f"{name:9}")
        lines.append(row, style=colour)
        lines.append(f" {size(phase.bytes):>6}\n")
    lines.rstrip()
    return lines


def print_time(time: TimeBound, console: Console) -> None:
    """The bound, by phase, and what it is a bound of."""
    phases = ", ".join(f"{name} {spent(seconds)}" for name, seconds in time.seconds.items())
    card = time.card
    console.print(f"\n{time.of} take at least {spent(3600 * time.hours)} ({phases}).", highlight=False)
    console.print(
        f"A bound, not a forecast: every run takes longer. {card.name} at its published {card.tflops:g} TFLOP/s in 16 bits and "
        f"{card.bandwidth:g} GB/s, with completions as long as the plan's.",
        style="dim",
        highlight=False,
    )


def spent(seconds: float) -> str:
    """A time, short.

    >>> spent(0.25), spent(90), spent(3 * 3600)
    ('0.25 s', '1.5 min', '3 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:,.3g} h"


def print_advice(changes: list[Advice], console: Console, *, flags: bool = True) -> None:
    """Each change on top of those before it, by the flags of `trl-ext plan` too where they are asked for."""
    if not changes:
        console.print("None of the known changes needs less.")
        return
    fits = changes[-1].verdict == "fits"
    console.print(
        "To make it fit, the cheapest first, all together:" if fits else "Not even all of these make it fit:"
    )
    for number, advice in enumerate(changes, start=1):
        console.print(f"{number}. {advice.change}: peak {size(advice.peak)} GiB", highlight=False)
        where = f"{advice.flag}, in a script {advice.config}" if flags else advice.config
        console.print(f"   {where}", highlight=False, markup=False)
        console.print(f"   costs: {advice.cost}", style="dim", highlight=False)


def size(number: int) -> str:
    """GiB; a dot for nothing.

    >>> size(3 * 2**29), size(1), size(0)
    ('1.5', '0.0', '·')
    """
    return f"{number / GIB:.1f}" if number else "·"
