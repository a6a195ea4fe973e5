"""A row of the benchmark: a number, the bound it must keep, and every single measurement."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

THREADS = 2
"""Of every side of every comparison."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: what is measured.
        value: the result; NaN where this machine cannot measure it.
        unit: `x` for how many times faster than the peer, else a unit or a share.
        bound: what the value must reach or not exceed, such as `>= 1.9` or `<= 0.6`; may be empty.
        peer: against what.
        runs: measurements by side, in the order in which they were taken.
        note: what a reader must know.
    """

    what: str
    value: float
    unit: str
    bound: str = ""
    peer: str = ""
    runs: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None without one, or without a value."""
        if not self.bound or self.value != self.value:
            return None
        sign, _, number = self.bound.partition(" ")
        return self.value >= float(number) if sign == ">=" else self.value <= float(number)


NO_BF16 = "no bf16 units here: auto is fp32"
"""The note of rows that only a processor with bf16 units, or a GPU, can fill."""

NO_GPU = "no GPU here"
"""The note of rows that only a GPU can fill."""


def auto_is_bf16() -> bool:
    """Whether `precision: auto` takes bf16 on this machine, for a model as large as the load's."""
    import torch

    from rlhf_core.runtime import resolve_precision

    device = torch.device("cpu")
    return resolve_precision("auto", device=device, num_parameters=4_500_000) == "bf16"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Seconds of both sides, A B A B after one round that does not count: (median ratio, runs).

    The ratio is taken within each round, so that what slows a whole round down cancels out.
    """
    ours()
    theirs()
    runs: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        runs["ours"].append(ours())
        runs["theirs"].append(theirs())
    ratios = [b / a for a, b in zip(runs["ours"], runs["theirs"], strict=True)]
    return statistics.median(ratios), runs
