"""The report as artifacts in Prefect's UI, when the report runs inside a flow run.

What the API refuses, or that there is no API, is one line in the log and never an error: the page
on disk is the report.
"""

import logging
import sys
from typing import Any

from tasks.reporting.figures import png_data_uri
from tasks.reporting.findings import Headline, caveats, warnings
from tasks.reporting.gather import RunData
from tasks.reporting.lineage import lineage_sheet
from tasks.reporting.plots import headline_panels
from tasks.reporting.samples import Samples, choose_samples
from tasks.reporting.sheets import Sheet, agreement_sheet, evaluation_sheet

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
"""Prefect's UI becomes slow, and some databases refuse, beyond a megabyte."""

MAX_CELL = 1500
"""Characters of a text in a table artifact."""


def publish_artifacts(data: RunData, headline: Headline) -> list[str]:
    """Publish what is there; returns the keys that were published."""
    if not _inside_flow_run():
        return []
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    tables: list[tuple[str, list[dict[str, Any]], str]] = [
        ("evaluation", _records(evaluation_sheet(data)), "Models compared, with 95 % intervals"),
        ("samples", _sample_records(choose_samples(data)), "Texts side by side, a random draw"),
        ("agreement", _records(agreement_sheet(data)), "Agreement of annotators"),
        ("lineage", _records(lineage_sheet(data)), "Every step, its key and what it read"),
    ]
    published: list[str] = []
    key = "report"
    try:
        text = markdown(data, headline)
        create_markdown_artifact(markdown=text, key=key, description=headline.sentence)
        published.append(key)
        for key, records, description in tables:
            if records:
                create_table_artifact(table=records, key=key, description=description)
                published.append(key)
    except Exception as error:  # the API may be away, full or old: none of it is the run's fault
        logger.warning("Prefect did not take the artifact %s: %s", key, error)
    return published


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
    end = ["", f"The whole report: `{data.config.paths.runs}/{data.config.name}/report.html`", ""]
    panels = headline_panels(data)
    while panels:
        picture = f"![Figures]({png_data_uri(panels, columns=2)})"
        text = "\n".join([*lines, "", picture, *doubts, *end])
        if len(text.encode()) < MAX_BYTES:
            return text
        panels = panels[:-1]
    return "\n".join([*lines, *doubts, *end])


def _records(sheet: Sheet | None) -> list[dict[str, Any]]:
    return [] if sheet is None else [dict(record) for record in sheet.records()]


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
