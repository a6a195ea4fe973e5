"""People rank the samples: the ranking page is served until enough has come."""

import time
from contextlib import closing

from rlhf_core.config import PipelineConfig
from rlhf_core.errors import InputError
from rlhf_core.records import TableArtifact
from tasks.progress import console
from tasks.ranking_page.answers import Answers, answers_path
from tasks.ranking_page.queue import Item, Queue, make_items, make_queue
from tasks.splits import REWARD_SPLITS
from tasks.step import StepRun, open_store, step

POLL_SECONDS = 0.5


@step(version=1, sections=(), cached=False, retries=0)
def ask_people(run: StepRun, *, sampled: TableArtifact, prompts: TableArtifact) -> None:
    """Serve the page until the conditions of `feedback` hold; publish nothing.

    The links go to the console and not into the log, which others may read: who has a link answers
    in its owner's name.

    Raises:
        InputError: there is nothing to rank, the page cannot be served, or too little has come
            within `feedback.timeout_minutes`.
    """
    from tasks.ranking_page.server import serve_page

    settings = run.config.feedback
    items = items_to_rank(run.config, sampled=sampled, prompts=prompts)
    deadline = time.monotonic() + 60 * settings.timeout_minutes
    with (
        serve_page(run.config, items) as serving,
        closing(Answers(answers_path(run.config))) as answers,
    ):
        queue = make_queue(run.config, items, answers)
        run.log(
            f"{len(items)} prompts are to be ranked at {serving.url}; each person has a link of "
            "their own"
        )
        for name, link in serving.links().items():
            console().print(f"  {name}: {link}", markup=False, soft_wrap=True)
        total = _wanted(queue, settings.min_rankings)
        with run.progress("people rank", total, "rankings") as bar:
            while missing := _missing(queue, settings.min_rankings):
                if time.monotonic() > deadline:
                    raise InputError(
                        f"feedback: {missing} after {settings.timeout_minutes:g} minutes "
                        "(feedback.timeout_minutes); they are kept: run again to wait on, or go on "
                        "with them by feedback.wait: none"
                    )
                bar.update(queue.num_rankings())
                time.sleep(POLL_SECONDS)
                answers.refresh()
            bar.update(queue.num_rankings())
    run.log(f"people have given {queue.num_rankings()} rankings; the run goes on")


def missing_rankings(
    config: PipelineConfig, *, sampled: TableArtifact, prompts: TableArtifact
) -> str:
    """What a run waits for, such as `3 of 120 rankings`; empty when it has enough.

    Raises:
        InputError: there is nothing to rank.
    """
    if config.feedback.wait == "none":
        return ""
    items = items_to_rank(config, sampled=sampled, prompts=prompts)
    with closing(Answers(answers_path(config))) as answers:
        return _missing(make_queue(config, items, answers), config.feedback.min_rankings)


def items_to_rank(
    config: PipelineConfig, *, sampled: TableArtifact, prompts: TableArtifact
) -> list[Item]:
    """The prompts of the reward splits with their samples.

    Raises:
        InputError: none of them has two distinct texts.
    """
    store = open_store(config)
    samples = store.open_table(sampled, ["candidate_id", "prompt_id", "sample_index", "response"])
    ranked = store.open_table(prompts, ["prompt_id", "prompt", "split"])
    ranked = ranked[ranked["split"].isin(REWARD_SPLITS)]
    samples = samples.sort_values("sample_index", kind="stable")
    items = make_items(
        zip(ranked["prompt_id"], ranked["prompt"], strict=True),
        zip(samples["candidate_id"], samples["prompt_id"], samples["response"], strict=True),
    )
    if not items:
        raise InputError(
            "there is nothing to rank: no prompt of the splits reward and reward_heldout has two "
            "distinct texts; raise sample.samples_per_prompt, sample.max_prompts or the splits' "
            "shares in ingest.split_shares"
        )
    return items


def _wanted(queue: Queue, min_rankings: int | None) -> int:
    everyone = queue.target * len(queue.items)
    return everyone if min_rankings is None else min(min_rankings, everyone)


def _missing(queue: Queue, min_rankings: int | None) -> str:
    wanted, come = _wanted(queue, min_rankings), queue.num_rankings()
    enough = min_rankings is not None and come >= min_rankings
    return "" if enough or queue.complete() else f"{come} of {wanted} rankings"
