"""`rlhf rank`: serve the ranking page of a run whose texts are there, without running anything."""

import time
from contextlib import closing
from typing import Any

from flows.plan import Planner
from rlhf_core.config import PipelineConfig
from rlhf_core.errors import InputError
from rlhf_core.records import StepResult
from tasks.ask_people import POLL_SECONDS, items_to_rank
from tasks.progress import progress
from tasks.ranking_page.answers import Answers, answers_path
from tasks.ranking_page.queue import make_queue
from tasks.ranking_page.server import serve_page


class _Finder(Planner):
    """Goes along the chain and keeps what the steps have published."""

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(config)
        self.found: dict[str, Any] = {}

    def run(self, step: Any, **inputs: Any) -> Any:
        found = self.found[step.name] = super().run(step, **inputs)
        return found


def rank(config: PipelineConfig) -> int:
    """Serve the page until Ctrl-C; returns the exit code.

    Raises:
        InputError: nothing would read the answers, the texts are not there yet, or the page cannot
            be served.
    """
    if config.feedback.source != "page":
        raise InputError(
            f"feedback.source is {config.feedback.source}, so no run would read what people say; "
            "set feedback.source: page in the recipe (or --set feedback.source=page)"
        )
    from flows.rlhf import chain

    finder = _Finder(config)
    chain(config, finder)
    sampled, ingested = finder.found["sample"], finder.found["ingest"]
    if not isinstance(sampled, StepResult) or not isinstance(ingested, StepResult):
        raise InputError(
            "there are no texts to rank yet: this recipe's step sample is not finished; rlhf run "
            "comes to it, and rlhf plan says what is missing"
        )
    items = items_to_rank(
        config, sampled=sampled.tables["candidates"], prompts=ingested.tables["prompts"]
    )
    with (
        serve_page(config, items) as serving,
        closing(Answers(answers_path(config))) as answers,
    ):
        queue = make_queue(config, items, answers)
        print(f"{len(items)} prompts to rank; each person has a link of their own:")
        for name, link in serving.links().items():
            print(f"  {name}: {link}")
        print("Ctrl-C ends it; what people have said stays.", flush=True)
        try:
            with progress("rank", "people rank", queue.target * len(items), "rankings") as bar:
                while True:
                    bar.update(queue.num_rankings())
                    time.sleep(POLL_SECONDS)
                    answers.refresh()
        except KeyboardInterrupt:
            answers.refresh()
    print(f"{queue.num_rankings()} rankings of {len(items)} prompts are kept in {answers.path}")
    return 0
