"""Our decode loop against `generate` of transformers, with the same models and rows."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.speed.ppo_load import EOS, LOADS, PAD, language_model, llama_config, prompts
from benchmarks.speed.rows import Row, alternate, seconds
from rlhf_core.generation import sample
from rlhf_core.models import choose_attention, num_parameters
from rlhf_core.runtime import resolve_precision

BOUNDS = {
    ("ragged", "fp32"): ">= 2.5",
    ("full length", "fp32"): ">= 1.0",
    ("full length", "auto"): ">= 1.3",
}


def rows(*, quick: bool) -> Iterator[Row]:
    """Batches of 1, 16, 64 and 256 of the load's Llama; the bounds are those of 64."""
    for name, load in LOADS.items():
        model = language_model(llama_config(), ragged=load.ragged)
        theirs = language_model(llama_config(), ragged=load.ragged)
        choose_attention(model)
        chosen = resolve_precision(
            "auto", device=torch.device("cpu"), num_parameters=num_parameters(model)
        )
        for batch in (64,) if quick else (1, 16, 64, 256):
            given = prompts(batch)
            for wanted in ("fp32", "auto"):
                precision: Any = chosen if wanted == "auto" else "fp32"
                ratio, runs = alternate(
                    lambda m=model, g=given, p=precision, t=load.max_new_tokens: seconds(  # type: ignore[misc]
                        lambda: sample(
                            m,
                            g,
                            temperature=1.0,
                            max_new_tokens=t,
                            pad_id=PAD,
                            eos_id=EOS,
                            generator=torch.Generator().manual_seed(0),
                            precision=p,
                        )
                    ),
                    lambda m=theirs, g=given, t=load.max_new_tokens: seconds(  # type: ignore[misc]
                        lambda: m.generate(
                            torch.tensor(g),
                            attention_mask=torch.ones(len(g), len(g[0]), dtype=torch.long),
                            do_sample=True,
                            top_k=0,
                            max_new_tokens=t,
                            pad_token_id=PAD,
                            eos_token_id=EOS,
                        )
                    ),
                    3 if quick else 5,
                )
                bound = BOUNDS.get((name, wanted), "") if batch == 64 else ""
                what = f"decoding, {name}, batch {batch}, {wanted}"
                yield Row(what, ratio, "x", bound, "generate, fp32", runs)
