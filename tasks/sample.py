"""n texts per prompt of the SFT model, in shards: a finished shard is never sampled again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.records import ModelArtifact, TableArtifact
from tasks.lm_common import fitting, set_up_machine
from tasks.step import StepRun, step
from tasks.tables import digest_id, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd


@step(version=3, sections=("sample", "seed", "precision", "ingest.max_rejected_share"))
def sample(run: StepRun, *, model: ModelArtifact, prompts: TableArtifact) -> None:
    """Sample texts for the prompts of the splits `reward` and `reward_heldout`."""
    import pandas as pd

    from rlhf_core.errors import InputError
    from rlhf_core.models import context_tokens, load_causal_lm
    from rlhf_core.tokens import encode_prompts

    settings = run.config.sample
    frame = run.read(prompts)
    frame = frame[frame["split"].isin(["reward", "reward_heldout"])]
    frame = frame.sort_values("prompt_id", ignore_index=True)  # ids are hashes: a fair choice
    if settings.max_prompts is not None:
        frame = frame.iloc[: settings.max_prompts]
    if frame.empty:
        raise InputError(
            "sample: no prompt is in the splits reward and reward_heldout; see ingest.split_shares"
        )
    lm, tokenizer = load_causal_lm(run.model_dir(model))
    machine = set_up_machine(run, lm)
    prompt_ids = encode_prompts(tokenizer, list(frame["prompt"]))
    kept = fitting(
        run,
        "prompts",
        [len(ids) for ids in prompt_ids],
        limit=context_tokens(lm) - settings.max_new_tokens,
        max_share=run.config.ingest.max_rejected_share,
    )
    shards = [
        kept[i : i + settings.shard_prompts] for i in range(0, len(kept), settings.shard_prompts)
    ]
    frames: list[pd.DataFrame] = []
    per_prompt = settings.samples_per_prompt
    total = len(kept) * per_prompt
    with run.progress("sampling texts to rank", total, "texts") as progress:
        for number, shard in enumerate(shards):

            def write(path: Path, shard: list[int] = shard, number: int = number) -> None:
                rows = _sample_shard(lm, tokenizer, frame, prompt_ids, shard, number, run, machine)
                rows = rows.drop_duplicates("candidate_id", ignore_index=True)
                write_table(path, "candidates", rows)

            path = run.part(f"shard-{number:05d}", ".parquet", write)
            frames.append(read_table(path, "candidates"))
            progress.update(min(total, (number + 1) * settings.shard_prompts * per_prompt))
    candidates = pd.concat(frames, ignore_index=True)  # a prompt is in one shard only
    run.fact("texts", len(candidates))
    run.fact("texts_sampled_again", total - len(candidates))
    run.fact("eos_share", round(float((candidates["finish_reason"] == "eos").mean()), 6))
    run.write("candidates", candidates)


def _sample_shard(
    lm: Any,
    tokenizer: Any,
    frame: "pd.DataFrame",
    prompt_ids: list[list[int]],
    shard: list[int],
    number: int,
    run: StepRun,
    machine: Any,
) -> "pd.DataFrame":
    import pandas as pd
    import torch

    from rlhf_core.generation import sample as sample_texts
    from rlhf_core.tokens import decode_response

    settings = run.config.sample
    # A seed per shard: shards are the same whichever process samples them, and in whatever order.
    seed = run.config.seed * 1_000_003 + number
    generator = torch.Generator(machine.device).manual_seed(seed)
    turns = [
        settings.temperatures[index % len(settings.temperatures)]
        for index in range(settings.samples_per_prompt)
    ]
    records = []
    for temperature in dict.fromkeys(turns):
        samples = [
            (row, index) for row in shard for index, t in enumerate(turns) if t == temperature
        ]
        sampled = sample_texts(
            lm,
            [prompt_ids[row] for row, _ in samples],
            temperature=temperature,
            max_new_tokens=settings.max_new_tokens,
            pad_id=tokenizer.pad_token_id,
            eos_id=tokenizer.eos_token_id,
            generator=generator,
            batch_size=settings.batch_size,
            precision=machine.precision,
        )
        for (row, index), one in zip(samples, sampled, strict=True):
            prompt_id, prompt = frame["prompt_id"].iloc[row], frame["prompt"].iloc[row]
            text = decode_response(tokenizer, one.response_ids)
            records.append(
                {
                    "candidate_id": digest_id(prompt, text),
                    "prompt_id": prompt_id,
                    "sample_index": index,
                    "response": text,
                    "finish_reason": one.finish_reason,
                    "policy": "sft",
                    "response_ids": one.response_ids,
                    "response_logprobs": one.logprobs,
                    "temperature": temperature,
                    "seed": seed,
                }
            )
    return pd.DataFrame(records)
