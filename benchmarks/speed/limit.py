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


def best_rate(dtype: torch.dtype) -> float:
    """Operations per second of the best square product up to 4096."""
    best = 0.0
    for size in (512, 1024, 2048, 4096):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        times = [seconds(lambda a=a, b=b: a @ b) for _ in range(4)]  # type: ignore[misc]
        best = max(best, 2.0 * size**3 / min(times))
    return best


def rows(*, quick: bool) -> Iterator[Row]:
    """Full length, fp32 and auto, both against the fp32 product."""
    load = LOADS["full length"]
    rates = {"fp32": best_rate(torch.float32)}
    if auto_is_bf16():  # without units for it a large product takes minutes
        rates["bf16"] = best_rate(torch.bfloat16)
    for precision in ("fp32", "auto"):
        what = f"optimisation, full length, {precision}: needed operations per second"
        if precision == "auto" and not auto_is_bf16():
            yield Row(what, float("nan"), "of the best fp32 product", note=NO_BF16)
            continue
        with Worker("ours", load.name, precision) as ours:
            ours.update()
            done = [ours.update() for _ in range(2 if quick else 5)]
        operations = needed_operations(
            episodes=load.episodes, response_tokens=done[0].response_tokens, epochs=load.epochs
        )
        took = statistics.median(update.optimisation_seconds for update in done)
        yield Row(
            what,
            operations / took / rates["fp32"],
            "of the best fp32 product",
            ">= 0.65" if precision == "fp32" else "",
            "square matrix products up to 4096",
            {"seconds": [update.optimisation_seconds for update in done]},
            "; ".join(f"{name} product {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
        )
