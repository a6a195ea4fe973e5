"""How good is the E2E reward model? Accuracy on strict human pairs, five folds by prompt.

    python benchmarks/reward_folds.py [--set paths.data=DIR] [--folds 0 1 2 3 4]

Runs (or finds) the steps of the recipe `e2e` up to the ratings, then trains the reward model five
times on four fifths of the ranked prompts, with the recipe's pairs of demonstrations. A pair is two
different texts of one prompt that people, by majority, did not hold equal. Beside it stands the
baseline "the longer text wins".
"""

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from flows.command import find_recipe
from rlhf_core.config import PipelineConfig
from rlhf_core.models import RewardModel, context_tokens, load_causal_lm
from rlhf_core.rated_prompts import RatedPrompt
from rlhf_core.recipe import load_config
from rlhf_core.train_reward import pair_scores, train_reward
from tasks.feedback import feedback
from tasks.ingest import ingest
from tasks.lm_common import set_up_machine
from tasks.pretrain import pretrain
from tasks.rate import rate
from tasks.reward import contrasted_demonstrations, output_layer_of, rated_prompts
from tasks.sample import sample
from tasks.sft import sft
from tasks.step import StepRun, open_store

NUM_FOLDS = 5


def main() -> None:
    """Print accuracy per fold and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(NUM_FOLDS)))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    config = load_config(find_recipe("e2e"), options.overrides)
    run, model_dir, prompts, demonstrations = rated_by_people(config)
    random.Random(0).shuffle(prompts)
    accuracies = []
    for fold in options.folds:
        held_out = prompts[fold::NUM_FOLDS]
        trained = [p for i, p in enumerate(prompts) if i % NUM_FOLDS != fold]
        accuracy, length_accuracy, num_pairs = measure(
            run, model_dir, trained + demonstrations, held_out
        )
        accuracies.append(accuracy)
        print(
            f"fold {fold}: accuracy {accuracy:.3f}, the longer text wins {length_accuracy:.3f}, "
            f"{num_pairs} pairs of {len(held_out)} prompts",
            flush=True,
        )
    print(f"mean accuracy {statistics.mean(accuracies):.3f}")


def rated_by_people(
    config: PipelineConfig,
) -> tuple[StepRun, Path, list[RatedPrompt], list[RatedPrompt]]:
    """The recipe up to the ratings; every ranked prompt with its texts and pairs, and the pairs of
    demonstrations."""
    tables = ingest.fn(config).tables
    prompts = tables["prompts"]
    base = pretrain.fn(config, corpus=tables["corpus"])
    tuned = sft.fn(
        config, base=base.model, demonstrations=tables["demonstrations"], prompts=prompts
    )
    sampled = sample.fn(config, model=tuned.model, prompts=prompts).tables["candidates"]
    said = feedback.fn(
        config,
        sampled=sampled,
        imported_candidates=tables["candidates"],
        imported_rankings=tables["rankings"],
        prompts=prompts,
    ).tables
    rated = rate.fn(
        config, rankings=said["rankings"], candidates=said["candidates"], prompts=prompts
    ).tables
    run = StepRun("reward", "", config, open_store(config), None)
    assert tuned.model is not None
    model_dir = run.model_dir(tuned.model)
    model, tokenizer = load_causal_lm(model_dir)
    by_split = rated_prompts(
        run,
        tokenizer,
        run.read(prompts),
        run.read(said["candidates"]),
        run.read(rated["ratings"]),
        run.read(rated["preference_pairs"]),
        context_tokens(model),
    )
    ranked = [p for split in by_split.values() for p in split if p.pairs]
    pairs = contrasted_demonstrations(
        run,
        tokenizer,
        run.read(prompts),
        tables["demonstrations"],
        context_tokens(model),
    )
    return run, model_dir, ranked, pairs


def measure(
    run: StepRun, model_dir: Path, trained: list[RatedPrompt], held_out: list[RatedPrompt]
) -> tuple[float, float, int]:
    """Train on some prompts; accuracy and length baseline on the pairs of the others."""
    settings = run.config.reward
    model = RewardModel.from_causal_lm(model_dir, score_at=settings.score_at)
    machine = set_up_machine(run, model)
    model.reset_head()
    lm, tokenizer = load_causal_lm(model_dir)
    pad_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        train_reward(
            model,
            trained,
            settings=settings,
            pad_id=pad_id,
            seed=run.config.seed,
            work_dir=Path(folder),
            precision=machine.precision,
            output_layer=output_layer_of(lm, settings, machine),
        )
    model.eval()
    chosen, rejected = pair_scores(model, held_out, pad_id=pad_id, precision=machine.precision)
    longer = [
        0.5
        + 0.5
        * (
            (len(p.response_ids[a]) > len(p.response_ids[b]))
            - (len(p.response_ids[a]) < len(p.response_ids[b]))
        )
        for p in held_out
        for a, b, _, _ in p.pairs
    ]
    return float((chosen > rejected).float().mean()), statistics.mean(longer), len(longer)


if __name__ == "__main__":
    main()
