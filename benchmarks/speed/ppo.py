"""PPO against TRL 1.12.0: one update with the same models, batch and number of optimizer steps."""

import importlib.util
from collections.abc import Iterator

from benchmarks.speed.ppo_worker import Worker
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
        with Worker("ours", load, precision) as ours, Worker("trl", load, "fp32") as theirs:
            peaks: dict[str, int] = {}
            tokens: dict[str, int] = {}

            def update(
                worker: Worker, side: str, peaks: dict[str, int], tokens: dict[str, int]
            ) -> float:
                done = worker.update()
                peaks[side], tokens[side] = done.peak_bytes, done.response_tokens
                return done.seconds

            ratio, runs = alternate(
                lambda o=ours, p=peaks, t=tokens: update(o, "ours", p, t),  # type: ignore[misc]
                lambda o=theirs, p=peaks, t=tokens: update(o, "theirs", p, t),  # type: ignore[misc]
                2 if quick else 5,
            )
        note = f"response tokens {tokens['ours']} and {tokens['theirs']}"
        yield Row(what, ratio, "x", bound, PEER, runs, note)
        if (load, precision) == ("full length", "fp32"):
            yield Row(
                "PPO, peak memory above the models, full length, fp32",
                peaks["ours"] / peaks["theirs"] if peaks["theirs"] else float("nan"),
                "of TRL's",
                "<= 0.6",
                PEER,
                {side: [float(peak)] for side, peak in peaks.items()},
                "bytes",
            )
