"""How good is the E2E reward model? Accuracy on strict human pairs, five folds by prompt.

    python -m benchmarks.reward_folds [--set paths.data=DIR] [--folds 0 1 2 3 4]

Runs (or finds) the steps of the recipe `e2e` up to the ratings, then trains the reward model five
times on four fifths of the ranked prompts, with the recipe's pairs of demonstrations.
"""

import argparse
import statistics

from benchmarks.e2e_reward import NUM_FOLDS, e2e_rankings


def main() -> None:
    """Print accuracy per fold and the mean, beside "the longer text wins"."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folds", type=int, nargs="+", default=list(range(NUM_FOLDS)), choices=range(NUM_FOLDS)
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    rankings = e2e_rankings(options.overrides)
    accuracies = []
    for fold in options.folds:
        outcomes = rankings.measure(fold, rankings.run.config.reward)
        accuracies.append(float(outcomes.right.mean()))
        print(
            f"fold {fold}: accuracy {accuracies[-1]:.3f}, the longer text wins "
            f"{outcomes.longer.mean():.3f}, {len(outcomes.right)} pairs",
            flush=True,
        )
    print(f"mean accuracy {statistics.mean(accuracies):.3f}")


if __name__ == "__main__":
    main()
