"""The same comparisons on a GPU: `auto` against the peers in bf16, with models of three sizes."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.speed import decoding, limit, ppo
from benchmarks.speed.ppo_load import LOADS, MODELS, language_model
from benchmarks.speed.rows import NO_GPU, Row

LARGE = list(MODELS)[-1]
NO_TRL = "install the extra `bench`"


def rows(*, quick: bool) -> Iterator[Row]:
    """PPO, its memory, decoding and the share of the limit; empty rows where there is no GPU."""
    there, rounds = torch.cuda.is_available(), 3 if quick else 5
    missing = NO_GPU if not there else "" if importlib.util.find_spec("trl") else NO_TRL
    for model in MODELS:
        for load in LOADS.values():
            peer = "TRL 1.12.0 in bf16"
            if missing:
                what = f"GPU: PPO, {load.name}, {model}"
                yield Row(what, float("nan"), "x", peer=peer, note=missing)
                continue
            for row in ppo.compare(
                load.name,
                "auto",
                peer=peer,
                their_precision="bf16",
                model=model,
                device="cuda",
                rounds=rounds,
            ):
                yield replace(row, what=f"GPU: {row.what}, {model}")
    for model, config in MODELS.items():
        for load in LOADS.values():
            what, peer = f"GPU: decoding, {load.name}, {model}, batch 64", "generate, bf16"
            if not there:
                yield Row(what, float("nan"), "x", peer=peer, note=NO_GPU)
                continue
            pair = [language_model(config(), ragged=load.ragged).cuda() for _ in range(2)]
            ratio, runs = decoding.race(pair, 64, load.max_new_tokens, "bf16", rounds)
            yield Row(what, ratio, "x", peer=peer, runs=runs)
    what = f"GPU: optimisation, full length, {LARGE}, bf16: needed operations per second"
    if there:
        yield limit.share(what, "auto", torch.bfloat16, model=LARGE, device="cuda", rounds=rounds)
    else:
        yield Row(what, float("nan"), "of the best bf16 product", note=NO_GPU)
