"""`trl-ext report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trl_ext.cli.command_parser import CommandParser
from trl_ext.reporting.finished_runs import read_runs
from trl_ext.reporting.page import report
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.findings import findings, too_few
from trl_ext.trainer_kit.own_folders import check_is_folder

EXAMPLE = "trl-ext report RUN"
DESCRIPTION = (
    "One page of HTML about runs, side by side: what is wrong and what to turn, curves, memory beside the plan, completions "
    "before and after. It needs no network. A run that is still going can be looked at too."
)


@dataclass
class ReportArguments:
    """Which runs, and where the page goes."""

    _argument_group_name = "the page"

    runs: list[str] | None = option(None, "Folders of runs: a trainer's output_dir. Also as the first words.")
    output: str | None = option(
        None, "The .html file. None: _report.html in the first run's folder, which a push to the hub leaves out."
    )


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = CommandParser(
        (ReportArguments,), prog="trl-ext report", example=EXAMPLE, description=DESCRIPTION, words="runs"
    )
    (args,) = parser.read(argv)
    if not args.runs:
        raise ValueError("--runs: expected the folder of a run, a trainer's output_dir. Give one or several.")
    output = Path(args.output or Path(args.runs[0]) / "_report.html")
    if output.suffix != ".html":
        raise ValueError(f"--output {args.output}: expected a name that ends in .html.")
    if args.output:
        check_is_folder(output.parent, call=f"--output {output}")
    runs = read_runs(args.runs)
    if not args.output:  # a run's folder, which had to be there
        check_is_folder(output.parent, call=f"{output}, without --output")
    for run in runs:
        found = [f"{finding.name}: {finding.sign}. {finding.turn}" for finding in findings(run)]
        few = too_few(run)
        for said in found or ([f"{few}."] if few else []):
            print(f"{run.name}: {said}")
    print(f"{report(args.runs, output)}: open it in a browser")
