"""Steps whose parts several workers do: the same artifacts, whoever they are and whenever they die.

Dask and Ray are optional; without them their tests are skipped.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_flow import TINY, Place, contents, ran

SPREAD = {"sample", "evaluate"}
RUNNERS = [
    "threads",
    "process",
    pytest.param("dask", marks=pytest.mark.slow),
    pytest.param("ray", marks=pytest.mark.slow),
]


def need(runner: str) -> None:
    """Skip where the runner's package is missing."""
    if runner in ("dask", "ray") and importlib.util.find_spec(f"prefect_{runner}") is None:
        pytest.skip(f"prefect-{runner} is not installed: pip install 'rlhf-pipeline[{runner}]'")


def sections(**runtime: Any) -> dict[str, Any]:
    """Four shards of prompts, and how they are shared out."""
    return {
        "sample": {**TINY["sample"], "shard_prompts": 4},
        "runtime": {**TINY["runtime"], **runtime},
    }


@pytest.fixture(scope="module")
def alone(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that one worker has done; look, but leave it as it is."""
    place = Place(tmp_path_factory.mktemp("alone"))
    place.flow(**sections())
    return place


@pytest.fixture
def again(alone: Place, tmp_path: Path) -> Place:
    """A copy of it in which the steps that can be shared out have to run again."""
    place = Place(tmp_path / "again")
    shutil.copytree(alone.folder, place.folder, symlinks=True)
    for step in SPREAD:
        shutil.rmtree(place.artifact(step))
    return place


@pytest.mark.parametrize("runner", RUNNERS)
def test_workers_make_the_same_artifacts(alone: Place, again: Place, runner: str) -> None:
    need(runner)
    summary = again.flow(**sections(workers=2, runner=runner))
    assert ran(summary) == SPREAD | {"report"}
    assert contents(again.run) == contents(alone.run)
