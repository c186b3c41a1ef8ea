"""The wheels that a bare machine with a card and no network lacks: brought here, unpacked there; the standard library only.

    .ci/gpu wheels                            # beside the script, for Python 3.12 on Linux, in the versions that are here
    .ci/gpu wheels --also transformers==5.17.0

The machine is taken to have torch, transformers, pandas and pyarrow, with all that they require. Of bitsandbytes only the
libraries for a CPU and for the CUDA versions of torch 2.11 go along.
"""

import argparse
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".ci" / "wheels"
THERE = ("torch", "transformers", "pandas", "pyarrow")
LIMIT = 60 * 2**20
LIBRARIES = ("cpu", "cuda126", "cuda128", "cuda130")  # of bitsandbytes
PLATFORMS = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="Of the machine; default: %(default)s.")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME==VERSION", help="More that it lacks.")
    args = parser.parse_args(words)
    chosen = [*pinned(), *args.also]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    subprocess.run(download(chosen, args.python), check=True)
    for wheel in FOLDER.glob("bitsandbytes-*.whl"):
        reduce(wheel)
    print(listing(sorted(FOLDER.glob("*.whl"))))


def download(chosen: Iterable[str], python: str) -> list[str]:
    """pip's command for wheels of another Python on Linux, without what they require."""
    platforms = [word for tag in PLATFORMS for word in ("--platform", f"manylinux{tag}_x86_64")]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    return [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(FOLDER), *chosen]


def listing(wheels: list[Path]) -> str:
    """Each wheel's size and the sum; a SystemExit where that is more than may travel."""
    sizes = [wheel.stat().st_size for wheel in wheels]
    lines = [f"{size / 2**20:6.2f} MiB  {wheel.name}" for wheel, size in zip(wheels, sizes, strict=True)]
    lines.append(f"{sum(sizes) / 2**20:6.2f} MiB  in {FOLDER.relative_to(ROOT)}")
    if sum(sizes) > LIMIT:
        raise SystemExit(
            "\n".join([*lines, f".ci/gpu wheels: expected at most {LIMIT / 2**20:.0f} MiB. Leave some out."])
        )
    return "\n".join(lines)


# Which


def pinned() -> list[str]:
    """What is carried, in the versions that are installed here, which go together."""
    try:
        return [f"{name}=={version(name)}" for name in carried()]
    except PackageNotFoundError as error:
        raise SystemExit(
            f".ci/gpu wheels: {error.name} is not installed here, by which versions are chosen. Install the project first."
        ) from error


def carried() -> list[str]:
    """What the project and its tests require, but for what is there with what that requires."""
    return sorted(closure([*project()["dependencies"], "pytest"]) - closure(THERE))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of what is required, directly or not, as the packages that are installed here say it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, open_ = set(), [Requirement(text) for text in requirements]
    while open_:
        one = open_.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        open_ += [Requirement(text) for text in requires(name) or []]
    return found


def reduce(wheel: Path) -> None:
    """Leave out bitsandbytes' libraries for other accelerators and versions of CUDA."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as part:
        for name in whole.namelist():
            library = name.partition("/libbitsandbytes_")[2].partition(".")[0]
            if not library or library in LIBRARIES:
                part.writestr(whole.getinfo(name), whole.read(name))
    small.replace(wheel)


# There


def unpack(folder: Path, wheels: Iterable[Path]) -> None:
    """What pip would do with wheels of pure files; and the project's own name and version, which it looks up."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as files:
            elsewhere = [name for name in files.namelist() if ".data/" in name and ".data/scripts/" not in name]
            if elsewhere:
                raise ValueError(f"unpack({wheel.name}): {elsewhere[0]} has another place. Install it with pip there.")
            files.extractall(folder)
    own = project()
    record = folder / f"{own['name'].replace('-', '_')}-{own['version']}.dist-info"
    record.mkdir(parents=True, exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {own['name']}\nVersion: {own['version']}\n")


if __name__ == "__main__":
    main()
