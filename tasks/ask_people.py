"""People rank the samples: what they are shown, where, and whether enough has come."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from rlhf_core.config import Feedback, PipelineConfig
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

    Raises:
        InputError: there is nothing to rank, the page cannot be served, or too little has come
            within `feedback.timeout_minutes`.
    """
    items = items_to_rank(run.config, sampled=sampled, prompts=prompts)
    deadline = time.monotonic() + 60 * run.config.feedback.timeout_minutes
    with asking(run.config, items) as people:
        run.log(
            f"{len(items)} prompts are to be ranked at {people.url}; each person has a link of "
            "their own"
        )
        people.show_links()
        with run.progress("people rank", people.wanted, "rankings") as bar:
            while missing := people.missing():
                if time.monotonic() > deadline:
                    raise InputError(too_late(run.config, missing))
                bar.update(people.num_rankings())
                time.sleep(POLL_SECONDS)
                people.refresh()
            bar.update(people.num_rankings())
        run.log(f"people have given {people.num_rankings()} rankings; the run goes on")


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
        return _missing(make_queue(config, items, answers), config.feedback)


def too_late(config: PipelineConfig, missing: str) -> str:
    """What to say when `feedback.timeout_minutes` are over."""
    return (
        f"feedback: {missing} after {config.feedback.timeout_minutes:g} minutes "
        "(feedback.timeout_minutes); they are kept: run again to wait on, or go on with them by "
        "feedback.wait: none"
    )


@dataclass(frozen=True)
class Asking:
    """People at the page, and how far they are.

    Attributes:
        url: where the page is.
        links: person -> link of their own; who has it answers in that person's name.
    """

    url: str
    links: Mapping[str, str]
    queue: Queue
    settings: Feedback

    def refresh(self) -> None:
        """Take in what has been said since."""
        self.queue.answers.refresh()

    def missing(self) -> str:
        """What is still waited for; empty when it is enough."""
        return _missing(self.queue, self.settings)

    def num_rankings(self) -> int:
        """Rankings that have come."""
        return self.queue.num_rankings()

    @property
    def wanted(self) -> int:
        """Rankings that are waited for, at most."""
        return _wanted(self.queue, self.settings)

    def show_links(self) -> None:
        """Each person's link on the console, not in a log, which others may read."""
        for name, link in self.links.items():
            console().print(f"  {name}: {link}", markup=False, soft_wrap=True)


@contextmanager
def asking(config: PipelineConfig, items: list[Item]) -> Iterator[Asking]:
    """Serve the page of a run while the block runs.

    Raises:
        InputError: the page cannot be served.
    """
    from tasks.ranking_page.server import serve_page

    with serve_page(config, items) as serving, closing(Answers(answers_path(config))) as answers:
        queue = make_queue(config, items, answers)
        yield Asking(serving.url, serving.links(), queue, config.feedback)


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


def _wanted(queue: Queue, settings: Feedback) -> int:
    everyone = queue.target * len(queue.items)
    return everyone if settings.min_rankings is None else min(settings.min_rankings, everyone)


def _missing(queue: Queue, settings: Feedback) -> str:
    if queue.complete():
        return ""
    wanted, come, least = (
        _wanted(queue, settings),
        queue.num_rankings(),
        settings.min_rankings_per_prompt,
    )
    short = 0 if least is None else queue.num_short(least)
    if come < wanted and (settings.min_rankings is not None or least is None):
        return f"{come} of {wanted} rankings"
    return f"{short} prompts with fewer than {least} rankings" if short else ""
