"""The update's needed floating-point operations over its time, against the machine's own rate."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.speed.ppo_load import LOADS, MODELS, PROMPT_TOKENS
from benchmarks.speed.ppo_worker import SMALL, Worker, wait_for
from benchmarks.speed.rows import NO_BF16, Row, auto_is_bf16, seconds

SIZES = (512, 1024, 2048, 4096)
"""Of the square products; those of the smaller ones are repeated until they take as long as one
of 2048."""

SIZES_ON_GPU = (4096, 8192)
REPEATS_ON_GPU = 20


def needed_operations(config: Any, *, episodes: int, response_tokens: int, epochs: int) -> float:
    """Of the optimisation of an update of a Llama: forward and backward (2 + 4 per weight and
    token), once per epoch, without recomputation. The output layer, and the last layer but for its
    keys and values, are needed for response tokens alone; attention without its masked half."""
    d, m = config.hidden_size, config.intermediate_size
    tokens = episodes * PROMPT_TOKENS + response_tokens
    length = tokens / episodes
    layer = 4 * d * d + 3 * d * m + 2 * d * length / 2  # multiplications per token
    per_pass = (config.num_hidden_layers - 1) * tokens * layer
    per_pass += tokens * 2 * d * d
    per_pass += response_tokens * (layer - 2 * d * d + d * config.vocab_size)
    return float(6 * epochs * per_pass)


def product_rates(device: str, dtype: torch.dtype) -> dict[int, float]:
    """Operations per second of square matrix products, by size."""
    rates = {}
    for size in SIZES if device == "cpu" else SIZES_ON_GPU:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        repeats = max(1, (2048 // size) ** 3) if device == "cpu" else REPEATS_ON_GPU

        def products(times: int, a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(times):
                a @ b
            wait_for(device)

        products(1)
        rates[size] = 2.0 * size**3 * repeats / seconds(lambda p=products, r=repeats: p(r))  # type: ignore[misc]
    return rates


def rows(*, quick: bool) -> Iterator[Row]:
    """Full length, fp32 and auto, both against the fp32 product."""
    for precision in ("fp32", "auto"):
        what = f"optimisation, full length, {precision}: needed operations per second"
        if precision == "auto" and not auto_is_bf16():
            yield Row(what, float("nan"), "of the best fp32 product", note=NO_BF16)
            continue
        bound = ">= 0.65" if precision == "fp32" else ""
        yield share(what, precision, torch.float32, bound=bound, rounds=2 if quick else 7)


def share(
    what: str,
    precision: str,
    dtype: torch.dtype,
    *,
    model: str = SMALL,
    device: str = "cpu",
    bound: str = "",
    rounds: int,
) -> Row:
    """Each round does the products of all sizes and an update. Of both the median counts, of the
    products that of the fastest size: the best of many tries would be a moment, not a rate."""
    load = LOADS["full length"]
    with Worker("ours", load.name, precision, model, device) as ours:
        operations = needed_operations(
            MODELS[model](),
            episodes=load.episodes,
            response_tokens=ours.update().response_tokens,
            epochs=load.epochs,
        )
        rates, took = [], []
        for _ in range(rounds):
            rates.append(product_rates(device, dtype))
            took.append(ours.update().optimisation_seconds)
    by_size = {size: [one[size] for one in rates] for size in rates[0]}
    best = max(by_size, key=lambda size: statistics.median(by_size[size]))
    rate = statistics.median(by_size[best])
    kind = "fp32" if dtype == torch.float32 else "bf16"
    return Row(
        what,
        operations / statistics.median(took) / rate,
        f"of the best {kind} product",
        bound,
        f"square matrix products up to {max(by_size)}",
        {"seconds": took, "products per second": by_size[best]},
        f"{kind} product {rate / 1e9:.0f} GFLOP/s, of size {best}",
    )
