"""What the user sees at the end of a run, of a plan, and of `rlhf report`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.journal import RunSummary, duration
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import InputError

STYLES = {"run": "green", "cached": "cyan", "skipped": "dim", "not reached": "yellow"}


def output_console() -> Console:
    """Standard output; wide where it is no terminal, so that no line is broken."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def overview(
    summary: RunSummary, config: PipelineConfig, seconds: float, peak_bytes: int
) -> RenderableType:
    """The table of the steps, the headline, and where things are.

    Args:
        summary: what the flow returned.
        config: the recipe, for the paths.
        seconds: of the whole command.
        peak_bytes: largest memory of the process.
    """
    folder = Path(config.paths.runs).expanduser() / summary.name
    parts: list[RenderableType] = ["", _steps(summary), ""]
    headline = _headline(folder)
    if headline:
        parts += [Text(headline), ""]
    facts = _facts(summary)
    if facts is not None:
        parts += [facts, ""]
    parts.append(_places(folder))
    parts.append(
        Text(f"{duration(seconds)} in all, at most {peak_bytes / 2**30:.2f} GiB of memory", "dim")
    )
    return Group(*parts)


def _steps(summary: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step")
    table.add_column("outcome")
    table.add_column("time", justify="right")
    for done in summary.outcomes:
        time = duration(done.seconds) if done.outcome in ("run", "cached") else ""
        table.add_row(done.step, Text(done.outcome, STYLES[done.outcome]), time)
    return table


def _headline(folder: Path) -> str:
    try:
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError):
        return ""


def _facts(summary: RunSummary) -> Table | None:
    """The numbers that evaluate (or, when PPO did not start, reward) gives to people."""
    step = "evaluate" if "evaluate" in summary.results else "reward"
    facts = summary.results[step].facts if step in summary.results else {}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        if name.endswith(("_low", "_high")) or value is None:
            continue
        low, high = facts.get(f"{name}_low"), facts.get(f"{name}_high")
        interval = "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]"
        table.add_row(name, _number(value), Text(interval, "dim"))
    return table if table.row_count else None


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _places(folder: Path) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    if (folder / "report.html").exists():
        table.add_row("report", Text(str(folder / "report.html"), overflow="fold"))
    policy = folder / "policy"
    if policy.exists():
        table.add_row("policy", Text(str(policy), overflow="fold"))
        command = f"rlhf generate --model {policy} 'YOUR PROMPT'"
        table.add_row("try it", Text(command, overflow="fold"))
    return table


def saved_report(run: str, runs: Path) -> tuple[Path, str]:
    """The report's path and the headline of a run that has ended.

    Args:
        run: a run's name, or its folder.
        runs: the folder of the runs.

    Raises:
        InputError: there is no such run, or it has not come to its report.
    """
    folder = Path(run) if (Path(run) / "run.json").exists() else runs / run
    if not folder.is_dir():
        known = sorted(path.parent.name for path in runs.glob("*/run.json"))
        there = f"; there are: {', '.join(known)}" if known else ""
        raise InputError(f"{folder}: no such run{there}")
    path = folder / "report.html"
    if not path.exists():
        raise InputError(f"{path}: not there; the run has not come to its report, run it again")
    return path, _headline(folder)
