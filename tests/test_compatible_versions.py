"""What can be installed beside the versions in constraints.txt, by what the others' wheels say they require.

Read with `pip install --dry-run --no-deps --ignore-installed --report - vllm==0.31.0`, which fetches a wheel's metadata
and not the wheel; of its `requires_dist`, the lines without extra that name a package of constraints.txt are below.
"""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

REQUIRES = {
    "vllm 0.31.0": [
        "torch==2.13.0", "transformers>=5.10.4,<5.18.0", "huggingface_hub>=1.31.0", "tokenizers>=0.21.1",
        "safetensors>=0.6.2", "openai>=2.25.0",
    ],
    "trl 1.16.0 with vLLM": ["vllm>=0.22.0,<=0.31.0"],
    "trl 1.12.0 with vLLM": ["vllm>=0.19.0,<=0.27.1"],
    "unsloth 2026.10.9": [
        "torch>=2.4.0,<2.15.0", "bitsandbytes>=0.45.5,!=0.46.0,!=0.48.0",
        "datasets>=3.4.1,<5.0.0,!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0", "accelerate>=0.34.1", "peft>=0.18.0,!=0.11.0",
        "huggingface_hub>=0.34.0", "trl>=0.18.2,<=1.15.0,!=0.19.0",
        "transformers>=4.52.4,<=5.17.0,!=4.53.0,!=4.54.0,!=4.55.0,!=4.55.1,!=4.57.0,!=4.57.4,!=4.57.5,!=5.0.0,!=5.1.0",
    ],
}  # fmt: skip


def pinned_set(**others: str) -> dict[str, Version]:
    """constraints.txt, by normalised name, with other packages beside."""
    pinned = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    return {name.replace("_", "-"): Version(version) for name, version in [*pinned, *others.items()]}


def refused(package: str, versions: dict[str, Version]) -> list[str]:
    """Packages whose versions it does not accept."""
    requirements = map(Requirement, REQUIRES[package])
    return [r.name for r in requirements if versions[r.name.replace("_", "-")] not in r.specifier]


def test_vllm_can_be_installed_beside_the_tested_set():
    """constraints.txt names the newest vLLM that its TRL takes; `pip install --dry-run` finds no conflict further down."""
    assert refused("vllm 0.31.0", pinned_set()) == []
    assert refused("trl 1.16.0 with vLLM", pinned_set()) == []


@pytest.mark.parametrize("change", [{"transformers": "5.18.0"}, {"torch": "2.14.0"}])
def test_vllm_cannot_be_installed_beside_newer_ones(change):
    """So the newest of everything is without vLLM."""
    assert refused("vllm 0.31.0", pinned_set(**change)) == list(change)


def test_vllm_of_the_pinned_set_is_newer_than_the_oldest_trl_takes():
    assert refused("trl 1.12.0 with vLLM", pinned_set()) == ["vllm"]


def test_the_extra_takes_no_vllm_that_trl_refuses():
    """Left to itself pip would take the newest."""
    extras = tomllib.loads((CONSTRAINTS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extra, trl = Requirement(extras["vllm"][0]), Requirement(REQUIRES["trl 1.16.0 with vLLM"][0])
    assert all(
        (version in extra.specifier) <= (version in trl.specifier) for version in ("0.31.0", "0.32.0", "0.33.0")
    )
    assert "0.31.0" in extra.specifier


def test_unsloth_needs_an_older_trl_and_datasets():
    """It cannot be installed beside constraints.txt; with these two it could, within what pyproject.toml allows."""
    assert refused("unsloth 2026.10.9", pinned_set()) == ["datasets", "trl"]
    assert refused("unsloth 2026.10.9", pinned_set(trl="1.15.0", datasets="4.8.5")) == []
