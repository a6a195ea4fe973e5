"""Is every line of the mathematics watched? `make mutants` breaks one at a time and runs the tests.

A mutant is one fault of the kind that RLHF code is known for. It is put into a copy of the
project; the tests of its room must fail there. A survivor ends the command with exit code 1.

    python tests/mutants.py [--only WORD] [--jobs 2]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

PROJECT = Path(__file__).resolve().parent.parent
MUTANT_SECONDS = 600
"""A mutant that runs longer (an endless loop, say) is caught by that."""


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
    started, survivors = time.monotonic(), []
    folders: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as scratch:
        for job in range(options.jobs):
            folders.put(_copy_project(Path(scratch) / str(job)))
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            if code := _run_tests(tests, folder=Path(scratch) / "0"):
                print(f"{' '.join(tests)}: exit code {code} without any fault; mend that first")
                return 2

        def judge(mutant: Mutant) -> tuple[Mutant, str]:
            folder = folders.get()
            try:
                return mutant, _fate(mutant, folder)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(options.jobs) as pool:
            for number, (mutant, fate) in enumerate(pool.map(judge, chosen), start=1):
                print(f"{number:3}/{len(chosen)} {fate:9} {mutant.file}: {mutant.name}", flush=True)
                if fate != "caught":
                    survivors.append(mutant)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught in {minutes:.1f} min")
    return 1 if survivors else 0


def _copy_project(folder: Path) -> Path:
    folder.mkdir()
    for name in ("rlhf_core", "tasks", "flows", "tests", "deployments", "pyproject.toml"):
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def _fate(mutant: Mutant, folder: Path) -> str:
    path = folder / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = _run_tests(mutant.tests, folder=folder)
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        path.write_text(sound, encoding="utf-8")
    # 1: tests failed. Anything else (2: nothing could be collected) proves nothing.
    return {0: "SURVIVED", 1: "caught"}.get(code, f"EXIT {code}")


def _run_tests(tests: tuple[str, ...], *, folder: Path) -> int:
    environment = os.environ | {
        "PYTHONPATH": str(folder),  # before the installed project
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=MUTANT_SECONDS,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
