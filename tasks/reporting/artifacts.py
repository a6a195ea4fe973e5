"""The report as artifacts in Prefect's UI, when the report runs inside a flow run; curves of PPO.

What the API refuses, or that there is no API, is one line in the log and never an error: the page
on disk is the report.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pandas as pd

from rlhf_core.config import PipelineConfig
from rlhf_core.records import StepResult
from tasks.live import State
from tasks.reporting.figures import png_data_uri
from tasks.reporting.findings import Headline, caveats, warnings
from tasks.reporting.gather import RunData, gather, metric_series
from tasks.reporting.lineage import lineage_sheet
from tasks.reporting.plots import annotator_panels, curve_panels, headline_panels
from tasks.reporting.samples import Samples, choose_samples
from tasks.reporting.sheets import Sheet, agreement_sheet, evaluation_sheet, ratings_sheet
from tasks.step import open_store

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
"""Prefect's UI becomes slow, and some databases refuse, beyond a megabyte."""

LIVE_PANELS = 6
"""Of PPO's curves, those that tell first whether it goes well."""

MAX_CELL = 1500
"""Characters of a text in a table artifact."""

TITLES = {
    "evaluation": "Models compared, with 95 % intervals",
    "samples": "Texts side by side, a random draw",
    "ratings": "Texts and their ratings, a random draw",
    "annotators": "Annotators: agreement, reliability, what sways them",
    "agreement": "Agreement of annotators",
    "ppo-curves": "PPO's curves",
    "lineage": "Every step, its key and what it read",
}
"""Artifacts beside the report, by key."""


def publish_artifacts(data: RunData, headline: Headline) -> list[str]:
    """Publish what is there, the report with links to the rest and back; returns the keys."""
    if not _inside_flow_run():
        return []
    from prefect.artifacts import create_markdown_artifact

    def create(key: str, text: str, title: str) -> UUID | None:
        make = partial(create_markdown_artifact, markdown=text, key=key, description=title)
        made: UUID | None = _tried(key, make)
        return made

    text = markdown(data, headline)
    report_id = create("report", text, headline.sentence)
    if report_id is None:
        return []
    titles = {key: f"{title} ([report]({_link(report_id)}))" for key, title in TITLES.items()}
    rest = _publish_tables(
        ("evaluation", _records(evaluation_sheet(data)), titles["evaluation"]),
        ("samples", _sample_records(choose_samples(data)), titles["samples"]),
        ("ratings", _records(ratings_sheet(data)), titles["ratings"]),
        ("agreement", _records(agreement_sheet(data)), titles["agreement"]),
        ("lineage", _records(lineage_sheet(data)), titles["lineage"]),
    )
    if people := annotator_panels(data):
        picture = f"![Annotators]({png_data_uri(people, columns=2)})"
        if made := create("annotators", picture, titles["annotators"]):
            rest["annotators"] = made
    if drawn := _tried("ppo-curves", _curves_of_this_run):
        rest["ppo-curves"] = drawn
        _tried("ppo-curves", partial(_update, drawn, description=titles["ppo-curves"]))
    more = [f"- [{title}]({_link(rest[key])})" for key, title in TITLES.items() if key in rest]
    text = "\n".join([text, "## More", "", *more, ""])
    _tried("report", partial(_update, report_id, data=text))
    return ["report", *rest]


def publish_comparison(config: PipelineConfig, result: StepResult, title: str) -> list[str]:
    """Publish the tables of an evaluation by itself; returns the keys that were published."""
    data = gather(config, {"evaluate": result}, gate=None, statuses={}, store=open_store(config))
    published = _publish_tables(
        ("comparison", _records(evaluation_sheet(data)), title),
        ("comparison-samples", _sample_records(choose_samples(data)), title),
    )
    return list(published)


def _publish_tables(*tables: tuple[str, list[dict[str, Any]], str]) -> dict[str, UUID]:
    from prefect.artifacts import create_table_artifact

    ids = {}
    for key, rows, title in tables:
        if not rows:
            continue
        make = partial(create_table_artifact, table=rows, key=key, description=title)
        if (made := _tried(key, make)) is None:
            break
        ids[key] = made
    return ids


def _tried(key: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the API may be away, full or old: none of it is the run's fault
        logger.warning("Prefect did not take the artifact %s: %s", key, error)
        return None


def _curves_of_this_run() -> UUID | None:
    """None where PPO was cached, or too quick for a picture."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterKey,
        FlowRunFilter,
        FlowRunFilterId,
    )
    from prefect.client.schemas.sorting import ArtifactSort
    from prefect.utilities.context import get_task_and_flow_run_ids

    _, run_id = get_task_and_flow_run_ids()
    if run_id is None:
        return None
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["ppo-curves"])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
            sort=ArtifactSort.UPDATED_DESC,
            limit=1,
        )
    return found[0].id if found else None


def _update(artifact_id: UUID, **changes: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactUpdate

    with get_client(sync_client=True) as client:
        client.update_artifact(artifact_id, ArtifactUpdate(**changes))


def _link(artifact_id: UUID) -> str:
    return f"/artifacts/artifact/{artifact_id}"


def curves(metrics: Sequence[tuple[int, str, float]], updates: int) -> State:
    """PPO's curves so far, as one picture.

    Args:
        metrics: (update, name, value); a later one may be added while this is drawn.
        updates: how many there will be.
    """
    frame = pd.DataFrame(list(metrics), columns=["step", "name", "value"])
    panels = curve_panels(partial(metric_series, frame))[:LIVE_PANELS]
    done = int(frame["step"].max())
    picture = f"![PPO's curves]({png_data_uri(panels)})"
    legend = "Lines: what PPO sampled. Dots: held-out prompts."
    return State(f"## Update {done} of {updates}\n\n{picture}\n\n{legend}\n", "PPO so far")


def _inside_flow_run() -> bool:
    if "prefect" not in sys.modules:  # importing it costs seconds, and no flow can be running
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def markdown(data: RunData, headline: Headline) -> str:
    """Headline, warnings, figures and doubts, below `MAX_BYTES`."""
    lines = [f"# {data.config.name}", "", f"**{headline.sentence}**", ""]
    lines += [f"{line}\n" for line in headline.support]
    lines += [f"> **{note.title}.** {note.text}\n" for note in warnings(data)]
    if headline.tiles:
        lines += ["| | | |", "|---|---|---|"]
        lines += [f"| {tile.label} | **{tile.value}** | {tile.detail} |" for tile in headline.tiles]
    doubts = ["", "## How it could be wrong", ""]
    doubts += [f"- **{note.title}.** {note.text}" for note in caveats(data)]
    end = [
        "",
        f"The whole report: `{data.config.paths.runs}/{data.config.name}/report.html`",
        "",
    ]
    panels = headline_panels(data)
    while panels:
        picture = f"![Figures]({png_data_uri(panels, columns=2)})"
        text = "\n".join([*lines, "", picture, *doubts, *end])
        if len(text.encode()) < MAX_BYTES:
            return text
        panels = panels[:-1]
    return "\n".join([*lines, *doubts, *end])


def _records(sheet: Sheet | None) -> list[dict[str, Any]]:
    records = [] if sheet is None else sheet.records()
    return [{name: text[:MAX_CELL] for name, text in record.items()} for record in records]


def _sample_records(samples: Samples | None) -> list[dict[str, Any]]:
    if samples is None:
        return []
    records = []
    for kind, comparisons in (("random", samples.random), ("worst", samples.worst)):
        for comparison in comparisons:
            record: dict[str, Any] = {"chosen": kind, "prompt": comparison.prompt[:MAX_CELL]}
            for text in comparison.texts:
                record[text.name] = text.response[:MAX_CELL]
                record[f"{text.name}, score"] = None if text.score is None else round(text.score, 3)
            records.append(record)
    return records
