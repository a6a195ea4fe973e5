"""All benchmarks of speed: a table, a JSON file and a plot.

    python -m benchmarks.speed [--quick] [--only ppo decoding ...] [--out build/bench]

Every number is taken in this run, on this machine; comparisons alternate (A B A B), and the value
is the median of the rounds' ratios. Let nothing else run beside it. Exits with 1 if a bound is not
kept.
"""

import argparse
import importlib
import json
import math
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.rows import THREADS, Row

GROUPS = ("ppo", "decoding", "limit", "orchestration", "ratings", "ingest", "growth", "gpu")


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch
    import transformers

    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": name,
        "units": " ".join(units),
        "threads": THREADS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def line_of(row: Row) -> str:
    """A line of a Markdown table."""
    value = "not measured" if math.isnan(row.value) else f"{row.value:,.4g} {row.unit}"
    verdict = {True: "yes", False: "**no**", None: ""}[row.holds]
    return f"| {row.what} | {value} | {row.bound} | {verdict} | {row.peer} | {row.note} |"


def plot(rows: list[Row], path: Path) -> None:
    """Ratios as bars with their bounds, and growth as curves that should be straight."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    ratios = [row for row in rows if row.unit == "x" and "theirs" in row.runs]
    growth = [row for row in rows if row.what.startswith("growth")]
    height = 2 + 0.3 * len(ratios)
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(12, height), layout="constrained")
    bars.barh([row.what for row in ratios], [row.value for row in ratios], color="#4C72B0")
    for at, row in enumerate(ratios):
        if row.bound:
            bars.plot([float(row.bound.split()[1])] * 2, [at - 0.4, at + 0.4], color="#C44E52")
    bars.axvline(1, color="grey", linewidth=1)
    bars.invert_yaxis()
    bars.set_xlabel("times as fast as the peer (red: bound)")
    for row in growth:
        sizes, times = row.runs["size"], row.runs["seconds"]
        curves.plot(
            [size / sizes[0] for size in sizes],
            [time / times[0] for time in times],
            marker="o",
            label=row.what.removeprefix("growth: "),
        )
    curves.set_xlabel("size, times the first")
    curves.set_ylabel("seconds, times the first")
    if growth:
        curves.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print each row as it is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder to write to")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    where = environment()
    print(", ".join(f"{name} {value}" for name, value in where.items() if value), flush=True)
    print(
        "\n| what | value | bound | kept | against | note |\n|---|---|---|---|---|---|", flush=True
    )
    rows: list[Row] = []
    for group in arguments.only:
        for row in importlib.import_module(f"benchmarks.speed.{group}").rows(quick=arguments.quick):
            rows.append(row)
            print(line_of(row), flush=True)
            found = {"environment": where, "rows": [asdict(row) for row in rows]}
            text = json.dumps(found, indent=2).replace("NaN", "null")
            (arguments.out / "speed.json").write_text(text, encoding="utf-8")
    plot(rows, arguments.out / "speed.png")
    print(f"\nwritten to {arguments.out}/speed.json and speed.png")
    sys.exit(any(row.holds is False for row in rows))


if __name__ == "__main__":
    main()
