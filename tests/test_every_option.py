"""No option is accepted and does nothing: another value of each changes the run, or is refused."""

import pytest
import torch
from every_option_case import RUNS, TOKENIZER, outcome, own_options
from tiny import tiny_llama

BASES: dict = {}  # what the runs did that several options are held against


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs write, and where another checkpoint lies."""
    folder = tmp_path_factory.mktemp("options")
    tiny_llama(TOKENIZER, seed=1).save_pretrained(folder / "other")
    TOKENIZER.save_pretrained(folder / "other")
    return folder


def run_of(config: type, folder, options: dict) -> dict:
    run, _ = RUNS[config]
    if options.get("imitation_head"):
        options = options | {"imitation_head": str(folder / options["imitation_head"])}
    torch.manual_seed(0)
    return outcome(run, folder / f"run-{len(list(folder.iterdir()))}", **options)


def base_of(config: type, folder, beside: dict) -> dict:
    key = (config, repr(beside))
    if key not in BASES:
        BASES[key] = run_of(config, folder, beside)
    return BASES[key]


def differs(one: dict, other: dict, what: str) -> bool:
    if what == "weights":
        return not torch.equal(one["weights"], other["weights"])
    return one[what] != other[what]


@pytest.mark.parametrize("config", RUNS)
def test_every_option_has_its_entry(config):
    """A new option shows here: say in `every_option_case.py` what another value of it changes."""
    assert set(own_options(config)) == set(RUNS[config][1])


@pytest.mark.parametrize("config", RUNS)
def test_the_same_run_does_the_same(config, folder):
    again, base = run_of(config, folder, {}), base_of(config, folder, {})
    assert again["error"] is base["error"] is None
    assert [what for what in ("weights", "log", "passes", "calls") if differs(again, base, what)] == []


@pytest.mark.parametrize(("config", "name"), [(config, name) for config, (_, table) in RUNS.items() for name in table])
def test_another_value_changes_the_run(config, name, folder):
    change = RUNS[config][1][name]
    base = base_of(config, folder, change.beside)
    changed = run_of(config, folder, change.beside | {name: change.value} | change.along)
    if change.shows_in == "error":
        assert bool(base["error"]) != bool(changed["error"])
    else:
        assert base["error"] is changed["error"] is None
        assert differs(base, changed, change.shows_in)
