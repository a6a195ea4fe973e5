"""PPO against TRL 1.12.0: one update with the same models, batch and number of optimizer steps."""

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.speed.ppo_worker import SMALL, Worker
from benchmarks.speed.rows import NO_BF16, Row, alternate, auto_is_bf16

BOUNDS = {
    ("ragged", "auto"): ">= 5",
    ("ragged", "fp32"): ">= 3.5",
    ("full length", "fp32"): ">= 1.9",
    ("full length", "auto"): ">= 3.5",
}
PEER = "TRL 1.12.0 in fp32"


def rows(*, quick: bool) -> Iterator[Row]:
    """Episodes per second for both loads and precisions, and peak memory."""
    if importlib.util.find_spec("trl") is None:
        yield Row("PPO", float("nan"), "x", peer=PEER, note="install the extra `bench`")
        return
    for (load, precision), bound in BOUNDS.items():
        what = f"PPO, {load}, {precision}"
        if precision == "auto" and not auto_is_bf16():
            yield Row(what, float("nan"), "x", bound, PEER, note=NO_BF16)
            continue
        speed, memory = compare(load, precision, rounds=2 if quick else 5)
        yield replace(speed, bound=bound)
        if (load, precision) == ("full length", "fp32"):
            yield replace(memory, bound="<= 0.6")


def compare(
    load: str,
    precision: str,
    *,
    peer: str = PEER,
    their_precision: str = "fp32",
    model: str = SMALL,
    device: str = "cpu",
    rounds: int,
) -> tuple[Row, Row]:
    """Times as many episodes per second as TRL, and the share of its peak of memory."""
    peaks: dict[str, float] = {}
    tokens: dict[str, list[int]] = {"ours": [], "theirs": []}

    def update(worker: Worker, side: str) -> Callable[[], float]:
        def one() -> float:
            done = worker.update()
            peaks[side] = done.peak_bytes
            tokens[side].append(done.response_tokens)
            return done.seconds

        return one

    with (
        Worker("ours", load, precision, model, device) as ours,
        Worker("trl", load, their_precision, model, device) as theirs,
    ):
        ratio, runs = alternate(update(ours, "ours"), update(theirs, "theirs"), rounds)
    means = [statistics.mean(counts[1:]) for counts in tokens.values()]  # the first is a warm-up
    note = f"response tokens {means[0]:.0f} and {means[1]:.0f} an update"
    what = f"{load}, {precision}"
    held = peaks["ours"] / peaks["theirs"] if peaks["theirs"] else float("nan")
    sides = {side: [peak] for side, peak in peaks.items()}
    return (
        Row(f"PPO, {what}", ratio, "x", "", peer, runs, note),
        Row(
            f"PPO, peak memory above the models, {what}", held, "of TRL's", "", peer, sides, "bytes"
        ),
    )
