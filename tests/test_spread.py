"""Steps whose parts several workers do: the same artifacts, whoever they are and whenever they die.

Dask and Ray are optional; without them their tests are skipped.
"""

import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.task_runners import ThreadPoolTaskRunner
from test_flow import TINY, Place, contents, ran

from rlhf_core.recipe import parse_config
from tasks import step as steps
from tasks.prefect_task import GPU_LIMIT, gpu_slot
from tasks.step import StepRun

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


def test_the_limit_gpu_is_honoured_where_there_is_one(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks at once on a server whose limit is 1; without the limit they overlap."""
    limit = {"name": GPU_LIMIT, "limit": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = parse_config({})
    inside: list[int] = []
    most: list[int] = []

    @task
    def works(number: int) -> None:
        with gpu_slot(config):
            inside.append(number)
            most.append(len(inside))
            time.sleep(1.0)
            inside.remove(number)

    runner: Any = ThreadPoolTaskRunner(max_workers=2)

    @flow(task_runner=runner)
    def both() -> int:
        most.clear()
        for future in [works.submit(number) for number in range(2)]:
            future.result()
        return max(most)

    assert both() == 2
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(**limit))
        try:
            assert both() == 1
        finally:
            client.delete_global_concurrency_limit_by_name(GPU_LIMIT)


@pytest.mark.parametrize(
    ("sections", "workers", "slots"), [("precision", 1, 1), ("precision", 2, 0), ("rate", 1, 0)]
)
def test_a_step_that_runs_models_takes_a_slot(
    prefect_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: str,
    workers: int,
    slots: int,
) -> None:
    """One whose workers run them leaves it to these, or they would wait for each other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    paths, runtime = {"root": str(tmp_path)}, {"workers": workers}
    taken = []

    @steps.step(version=1, sections=(sections,), spreads=True)
    def works(run: StepRun) -> None:
        with get_client(sync_client=True) as client:
            taken.append(client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots)

    @flow
    def alone() -> None:
        works(parse_config({"paths": paths, "runtime": runtime}))

    with get_client(sync_client=True) as client:
        limit = GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1)
        client.create_global_concurrency_limit(limit)
        try:
            alone()
            left = client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots
        finally:
            client.delete_global_concurrency_limit_by_name(GPU_LIMIT)
    assert taken == [slots]
    assert left == 0


def test_a_processor_needs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_slot(parse_config({"runtime": {"device": "cpu"}})):
        pass
