"""How Prefect gets to know the artifact store: a cache policy, a serializer, retries, logs.

Prefect keeps one small JSON record per built step. The record is believed only while its artifact
is there: the serializer looks when it loads the record, and raises when the artifact is gone or
damaged. Prefect takes any error of a serializer as "no record" (`ResultStore._exists`), so exactly
that step runs again. That is a habit of Prefect and no promise; a test pins it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.serializers import JSONSerializer
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import Field

from rlhf_core.errors import GateFailed
from rlhf_core.records import StepResult
from tasks.store import ArtifactDamaged

if TYPE_CHECKING:
    from prefect import State, Task

NEVER_RETRIED = (
    ValueError,  # InputError too
    TypeError,
    AssertionError,
    GateFailed,
    ArtifactDamaged,  # the chain has to start again from the damaged step
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
)
"""The same again would only fail again; a full disk, a lost connection or no memory may not."""

BACKOFF_SECONDS = 5.0

LOGGERS = ("rlhf", "rlhf_core", "tasks")


class ArtifactSerializer(JSONSerializer[StepResult]):
    """Records of built steps as JSON; loading one checks that its artifact is there and whole."""

    type: str = Field(default="rlhf-artifact", frozen=True)

    def dumps(self, obj: StepResult) -> bytes:
        """The record as JSON."""
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> StepResult:
        """The record, if the artifact that it names is there and whole.

        Raises:
            LookupError: it is not; Prefect then runs the step.
        """
        from tasks.step import verify_record

        return verify_record(StepResult.model_validate_json(blob))


@dataclass
class ArtifactKey(CachePolicy):
    """The key that the step has computed, and a digest of the root it was asked for.

    With the root in it, two roots share one Prefect home without unsettling each other's records.
    """

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The name of the record in Prefect's result storage."""
        return f"rlhf-{inputs['name']}-{inputs['root']}"


def should_retry(task: "Task[Any, Any]", task_run: Any, state: "State[Any]") -> bool:
    """Whether a failed attempt may succeed the next time; see `NEVER_RETRIED`."""
    error = state.data
    return not isinstance(getattr(error, "result", error), NEVER_RETRIED)


def make_task(
    function: Callable[..., Any], name: str, *, cached: bool, retries: int
) -> "Task[Any, Any]":
    """`function(name, root, title, call)` as a Prefect task."""
    caching: dict[str, Any] = {"persist_result": False}
    if cached:
        caching = {
            "cache_policy": ArtifactKey(),
            "persist_result": True,
            "result_serializer": ArtifactSerializer(),
            # A record in memory would outlive the artifact that it names.
            "cache_result_in_memory": False,
        }
    decorate = task(
        name=name,
        task_run_name="{title}",
        retries=retries,
        retry_delay_seconds=exponential_backoff(BACKOFF_SECONDS),
        retry_jitter_factor=0.5,
        retry_condition_fn=should_retry,
        **caching,
    )
    return decorate(function)


def refresh_wanted() -> bool:
    """Whether the running task was told to build again even if its artifact is there."""
    context = TaskRunContext.get()
    if context is None:
        return False
    if context.task.refresh_cache is not None:
        return bool(context.task.refresh_cache)
    return bool(get_current_settings().tasks.refresh_cache)


def as_cached(result: StepResult) -> Any:
    """What the task returns when the store had the artifact though Prefect had no record of it."""
    if TaskRunContext.get() is None:
        return result
    return Completed(name="Cached", message="Found in the artifact store", data=result)


def run_logger() -> Any:
    """Prefect's logger inside a run, Python's outside."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("tasks")


@contextmanager
def our_lines() -> Iterator[None]:
    """What our code logs goes into the log of the run, however that was started.

    `PREFECT_LOGGING_EXTRA_LOGGERS` would leave out all below a warning.
    """
    handlers = logging.getLogger("prefect.extra").handlers
    before = [(logger, logger.level) for logger in map(logging.getLogger, LOGGERS)]
    for logger, level in before:
        logger.setLevel(level or logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
