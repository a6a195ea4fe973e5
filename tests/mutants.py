"""Is every line of the mathematics watched? `make mutants` breaks one at a time and runs the tests.

A mutant is one fault of the kind that RLHF code is known for. It is put into a copy of the
project; the tests of its room must fail there. A survivor ends the command with exit code 1.

    python tests/mutants.py [--only WORD] [--jobs 2]
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
LIBRARIES = (
    "hypothesis",
    "jaxtyping",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
"""Imported once, not for each mutant: that takes as long as the tests. Nothing of the project is
among them."""


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` stands once in the file and becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def load_mutants() -> list[Mutant]:
    """Those of `mutants.yaml`, in its order."""
    groups = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return [
        Mutant(file=group["file"], tests=tuple(group["tests"]), **fault)
        for group in groups
        for fault in group["faults"]
    ]


def main() -> int:
    """Run the mutants; 1 when one of them lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name or file holds this word")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    options = parser.parse_args()
    chosen = [m for m in load_mutants() if options.only in m.name or options.only in m.file]
    if not chosen:
        print(f"no mutant's name or file holds {options.only!r}")
        return 2
    for mutant in chosen:
        count = (PROJECT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            print(f"{mutant.file}: {mutant.name!r} must stand once in it, found {count} times")
            return 2
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)
    started, survivors = time.monotonic(), []
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        suites = list(dict.fromkeys(mutant.tests for mutant in chosen))
        for tests, code in zip(suites, pool.imap(_test_sound, suites, chunksize=1), strict=True):
            if code:
                print(f"{' '.join(tests)}: exit code {code} without any fault; mend that first")
                return 2
        for number, (mutant, code) in enumerate(
            zip(chosen, pool.imap(_test_mutant, chosen, chunksize=1), strict=True), start=1
        ):
            # 1: tests failed. Anything else (2: nothing could be collected) proves nothing.
            fate = {0: "SURVIVED", 1: "caught"}.get(code, f"EXIT {code}")
            print(f"{number:3}/{len(chosen)} {fate:9} {mutant.file}: {mutant.name}", flush=True)
            if fate != "caught":
                survivors.append(mutant)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught in {minutes:.1f} min")
    return 1 if survivors else 0


def _test_sound(tests: tuple[str, ...]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        _copy_project(Path(scratch))
        return _run_tests(tests, folder=Path(scratch))


def _test_mutant(mutant: Mutant) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        _copy_project(Path(scratch))
        path = Path(scratch) / mutant.file
        sound = path.read_text(encoding="utf-8")
        path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
        return _run_tests(mutant.tests, folder=Path(scratch))


def _copy_project(folder: Path) -> None:
    for name in ("rlhf_core", "tasks", "flows", "tests", "deployments", "pyproject.toml"):
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def _run_tests(tests: tuple[str, ...], *, folder: Path) -> int:
    """In this process, which nobody uses afterwards; a test that hangs fails by its time-out."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)  # of processes that the tests start
    sys.path[:0] = [str(folder)]  # before the installed project
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    sys.exit(main())
