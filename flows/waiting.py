"""Waiting for people in Prefect's own ways: a run that is paused or suspended, and who wakes it.

A suspended run has no process; when it is resumed, the flow starts at its top and comes back to
where it waits, with every step cached. What was decided in the form is kept by Prefect under a key
of its own for each time that the run has waited.
"""

import threading
from collections.abc import Callable
from typing import Any, Literal

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import FlowPauseTimeout, NotPausedError
from prefect.flow_runs import pause_flow_run, resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, ValidationError

from flows.journal import log
from flows.rank import texts_to_rank
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import InputError
from tasks.ask_people import asking, items_to_rank, missing_rankings, too_late

FLOW_NAME = "rlhf"

POLL_SECONDS = 2.0

GO_ON = {"decision": "go on"}


class Decision(RunInput):
    """The form behind Prefect's button Resume."""

    decision: Literal["go on", "wait on", "stop"] = Field(
        description="go on: with the rankings that are there. wait on: until enough have come. "
        "stop: end the run; the rankings are kept."
    )


def wait_for_people(
    config: PipelineConfig, ask_people: Any, missing: Callable[..., str], **inputs: Any
) -> None:
    """Wait as `feedback.wait` says until nothing is missing or somebody has decided.

    Args:
        config: the recipe.
        ask_people: the step that waits in this process.
        missing: what is missing, empty when nothing, given the configuration and the inputs.
        inputs: artifacts of the steps before.

    Raises:
        InputError: somebody decided to stop, or the time is over.
    """
    how = config.feedback.wait
    if how == "suspend" and runtime.deployment.id is None:
        log.info("feedback.wait is suspend, but no deployment would start this run again: it polls")
        how = "poll"
    turn = 0
    while words := missing(config, **inputs):
        if how == "poll":
            ask_people(config, **inputs)
            return
        form = Decision.with_initial_data(description=_description(config, words))
        key, seconds = f"people-{turn}", round(60 * config.feedback.timeout_minutes)
        if how == "suspend":
            log.info("%s; suspended until enough have come", words)
            decided = suspend_flow_run(form, timeout=seconds, key=key)
        else:
            decided = _pause(config, form, words, timeout=seconds, key=key, inputs=inputs)
        if decided.decision == "stop":
            raise InputError(
                f"stopped in the form, with {words}; they are kept: run again to wait on"
            )
        if decided.decision == "go on":
            log.info("going on with what is there: %s", missing(config, **inputs) or "enough")
            return
        turn += 1


def _pause(
    config: PipelineConfig,
    form: type[Decision],
    words: str,
    *,
    timeout: int,
    key: str,
    inputs: dict[str, Any],
) -> Decision:
    """Serve the page while the run is `Paused`; a thread resumes it when enough has come."""
    over = threading.Event()
    run_id = runtime.flow_run.id
    with asking(config, items_to_rank(config, **inputs)) as people:

        def watch() -> None:
            while not over.wait(max(POLL_SECONDS, people.poll_seconds)):
                try:
                    people.pull()
                except InputError as error:  # Label Studio is away for a while
                    log.warning("%s", error)
                    continue
                if not people.missing() and resume(run_id):
                    return

        log.info("%s; paused until enough have come, at %s", words, people.url)
        people.show_links()
        watcher = threading.Thread(target=watch, name="people", daemon=True)
        watcher.start()
        try:
            return pause_flow_run(form, timeout=timeout, poll_interval=int(POLL_SECONDS), key=key)
        except FlowPauseTimeout:
            raise InputError(too_late(config, people.missing())) from None
        finally:
            over.set()
            watcher.join()


def _description(config: PipelineConfig, words: str) -> str:
    place = "at the page that `rlhf rank` serves, which also shows their links"
    if config.feedback.source == "label_studio":
        place = f"in Label Studio at {config.feedback.label_studio.url}"
    return (
        f"**{config.name}** waits for people: {words} so far. It goes on by itself when enough "
        f"have come. People rank {place}."
    )


def resume(run_id: Any) -> bool:
    """Let a waiting run go on; False where it does not wait (any more)."""
    try:
        resume_flow_run(run_id, run_input=GO_ON)
    except (NotPausedError, FlowPauseTimeout):
        return False
    return True


def resume_ready(name: str | None = None) -> list[str]:
    """Resume every suspended run that has enough rankings.

    Args:
        name: of the recipe whose runs are looked at; None: all.

    Returns:
        The names of the runs that go on.
    """
    return [
        run.name for run, config in suspended(name) if _is_ready(run, config) and resume(run.id)
    ]


def suspended(name: str | None = None) -> list[tuple[FlowRun, PipelineConfig]]:
    """Runs that wait without a process, with their recipes."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
            ),
        )
    found = []
    for run in runs:
        if run.state is None or run.state.name != "Suspended":
            continue
        try:
            config = PipelineConfig.model_validate(run.parameters["config"])
        except (KeyError, ValidationError):
            log.warning("%s waits, but its parameters are of another version", run.name)
            continue
        if name is None or config.name == name:
            found.append((run, config))
    return found


def _is_ready(run: FlowRun, config: PipelineConfig) -> bool:
    try:
        texts = texts_to_rank(config)
        return not missing_rankings(config, sampled=texts["sampled"], prompts=texts["prompts"])
    except InputError as error:
        log.warning("%s waits, but not for people: %s", run.name, error)
        return False
