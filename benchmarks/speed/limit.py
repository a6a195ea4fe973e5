"""The update's needed floating-point operations over its time, against the machine's own rate."""

import statistics
from collections.abc import Iterator

import torch

from benchmarks.speed.ppo_load import LOADS, PROMPT_TOKENS, VOCABULARY, llama_config
from benchmarks.speed.ppo_worker import Worker
from benchmarks.speed.rows import NO_BF16, Row, auto_is_bf16, seconds


def needed_operations(*, episodes: int, response_tokens: int, epochs: int) -> float:
    """Of the optimisation of an update: forward and backward (2 + 4 per weight and token), once
    per epoch, without recomputation. The output layer, and the last layer but for its keys and
    values, are needed for response tokens alone; attention without its masked half."""
    config = llama_config()
    d, m = config.hidden_size, config.intermediate_size
    tokens = episodes * PROMPT_TOKENS + response_tokens
    length = tokens / episodes
    layer = 4 * d * d + 3 * d * m + 2 * d * length / 2  # multiplications per token
    per_pass = (config.num_hidden_layers - 1) * tokens * layer
    per_pass += tokens * 2 * d * d + response_tokens * (layer - 2 * d * d + d * VOCABULARY)
    return float(6 * epochs * per_pass)


def best_rate() -> float:
    """Operations per second of the best square fp32 product up to 4096."""
    best = 0.0
    for size in (512, 1024, 2048, 4096):
        a, b = torch.randn(size, size), torch.randn(size, size)
        times = [seconds(lambda a=a, b=b: a @ b) for _ in range(2)]  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / min(times))
    return best


def rows(*, quick: bool) -> Iterator[Row]:
    """Full length, fp32 and auto, both against the fp32 product; the median over rounds of a
    product and an update each."""
    load = LOADS["full length"]
    for precision in ("fp32", "auto"):
        what = f"optimisation, full length, {precision}: needed operations per second"
        if precision == "auto" and not auto_is_bf16():
            yield Row(what, float("nan"), "of the best fp32 product", note=NO_BF16)
            continue
        with Worker("ours", load.name, precision) as ours:
            operations = needed_operations(
                episodes=load.episodes,
                response_tokens=ours.update().response_tokens,
                epochs=load.epochs,
            )
            best_rate()
            rates, took = [], []
            for _ in range(3 if quick else 7):
                rates.append(best_rate())
                took.append(ours.update().optimisation_seconds)
        shares = [operations / t / rate for t, rate in zip(took, rates, strict=True)]
        yield Row(
            what,
            statistics.median(shares),
            "of the best fp32 product",
            ">= 0.65" if precision == "fp32" else "",
            "square matrix products up to 4096",
            {"seconds": took, "products per second": rates},
            f"fp32 product {statistics.median(rates) / 1e9:.0f} GFLOP/s",
        )
