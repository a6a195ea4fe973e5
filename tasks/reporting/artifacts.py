"""The report as artifacts in Prefect's UI, when the report runs inside a flow run; curves of PPO.

What the API refuses, or that there is no API, is one line in the log and never an error: the page
on disk is the report.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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


SHEETS = {
    "evaluation": "models compared",
    "samples": "texts side by side",
    "ratings": "texts and their ratings",
    "annotators": "annotators",
    "agreement": "their agreement",
    "lineage": "lineage",
}
"""Artifacts beside the report, and what it calls them."""


def publish_artifacts(data: RunData, headline: Headline) -> list[str]:
    """Publish what is there; returns the keys that were published."""
    if not _inside_flow_run():
        return []
    from prefect.artifacts import create_markdown_artifact

    def report() -> None:
        text = markdown(data, headline)
        create_markdown_artifact(markdown=text, key="report", description=headline.sentence)

    published = ["report"] if _taken("report", report) else []
    if not published:
        return []
    if people := annotator_panels(data):
        text = f"![Annotators]({png_data_uri(people, columns=2)})"
        title = "Annotators: agreement, reliability, what sways them"
        make = partial(create_markdown_artifact, markdown=text, key="annotators", description=title)
        published += ["annotators"] if _taken("annotators", make) else []
    return published + _publish_tables(
        ("evaluation", _records(evaluation_sheet(data)), "Models compared, with 95 % intervals"),
        ("samples", _sample_records(choose_samples(data)), "Texts side by side, a random draw"),
        ("ratings", _records(ratings_sheet(data)), "Texts and their ratings, a random draw"),
        ("agreement", _records(agreement_sheet(data)), "Agreement of annotators"),
        ("lineage", _records(lineage_sheet(data)), "Every step, its key and what it read"),
    )


def publish_comparison(config: PipelineConfig, result: StepResult, title: str) -> list[str]:
    """Publish the tables of an evaluation by itself; returns the keys that were published."""
    data = gather(config, {"evaluate": result}, gate=None, statuses={}, store=open_store(config))
    return _publish_tables(
        ("comparison", _records(evaluation_sheet(data)), title),
        ("comparison-samples", _sample_records(choose_samples(data)), title),
    )


def _publish_tables(*tables: tuple[str, list[dict[str, Any]], str]) -> list[str]:
    from prefect.artifacts import create_table_artifact

    published = []
    for key, rows, title in tables:
        if not rows:
            continue
        if not _taken(key, partial(create_table_artifact, table=rows, key=key, description=title)):
            break
        published.append(key)
    return published


def _taken(key: str, create: Callable[[], object]) -> bool:
    try:
        create()
    except Exception as error:  # the API may be away, full or old: none of it is the run's fault
        logger.warning("Prefect did not take the artifact %s: %s", key, error)
        return False
    return True


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
    links = [f"[{title}](/artifacts/key/{key})" for key, title in SHEETS.items()]
    end = [
        "",
        f"More: {', '.join(links)}.",
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
