"""Rated texts of one prompt, and pairs that need no ranking: a text must fit its prompt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class RatedPrompt:
    """One prompt with its rated texts, and the pairs of them that somebody compared."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    targets: list[float]
    """Rating of each text, standardised."""
    elo: list[float]
    """Rating of each text, Elo points, mean 0."""
    pairs: list[tuple[int, int, float, float]]
    """(chosen, rejected, weight, Elo margin), indices into `response_ids`."""
    similar_prompt_ids: list[int] | None = None
    """Another prompt, under which the best text must score lower; None: no such pair."""

    @property
    def best(self) -> int:
        """The text with the highest rating; the first of equal ones."""
        return max(range(len(self.elo)), key=self.elo.__getitem__)


SIMILAR_AMONG = 4096
"""Prompts among which similar ones are looked for: the search is quadratic."""

NUM_SIMILAR = 4
"""So many of the most similar prompts take turns."""


def with_similar_prompts(prompts: Sequence[RatedPrompt], max_tokens: int) -> list[RatedPrompt]:
    """Each prompt with the most similar other one, under which its best text must score lower.

    None where the best text does not fit behind that one into `max_tokens`.

    A text that is right for one of them is wrong for the other in what they do not share. People
    rank texts of one prompt, which are all about it, so a model can learn their rankings without
    ever reading the prompt; it cannot learn this.

    Source: contrast instructions, Shen et al. 2024 (The Trickle-down Impact of Reward
    Inconsistency), there to measure; similarity is Jaccard's index of the token sets.
    """
    result = []
    for start in range(0, len(prompts), SIMILAR_AMONG):
        block = prompts[start : start + SIMILAR_AMONG]
        similar = _most_similar([prompt.prompt_ids for prompt in block])
        for prompt, others in zip(block, similar, strict=True):
            ids = block[others[0]].prompt_ids if others else None
            if ids and len(ids) + len(prompt.response_ids[prompt.best]) > max_tokens:
                ids = None
            result.append(replace(prompt, similar_prompt_ids=ids))
    return result


def contrasting_pairs(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[list[int]],
    *,
    num_pairs: int,
    max_tokens: int,
    seed: int,
) -> list[RatedPrompt]:
    """Demonstrations as pairs: a prompt's own is better than one of a very similar other prompt.

    What the two prompts do not share is wrong in the other's text, or missing there; and a text is
    about as often the better as the worse one, so its style says little.

    Args:
        prompt_ids: of each demonstration.
        response_ids: the demonstrations.
        num_pairs: so many, fewer where no two prompts differ or nothing fits.
        max_tokens: longest prompt and response together.
        seed: which prompts and demonstrations are taken.
    """
    rng = random.Random(seed)
    by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt, response in zip(prompt_ids, response_ids, strict=True):
        by_prompt.setdefault(tuple(prompt), []).append(response)
    prompts = rng.sample(list(by_prompt), min(SIMILAR_AMONG, len(by_prompt)))
    neighbours = list(zip(prompts, _most_similar(prompts), strict=True))
    pairs: list[RatedPrompt] = []
    before = -1
    while before < len(pairs) < num_pairs:
        before = len(pairs)
        for prompt, similar in neighbours:
            if not similar or len(pairs) == num_pairs:
                continue
            texts = [rng.choice(by_prompt[p]) for p in (prompt, prompts[rng.choice(similar)])]
            if texts[1] in by_prompt[prompt]:
                continue
            if len(prompt) + max(map(len, texts)) <= max_tokens:
                pairs.append(
                    RatedPrompt(list(prompt), texts, [0.0, 0.0], [0.0, 0.0], [(0, 1, 1.0, 0.0)])
                )
    return pairs


def _most_similar(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each prompt those that share most of its tokens, but not all; none that shares nothing."""
    tokens = sorted({token for prompt in prompts for token in prompt})
    column = {token: index for index, token in enumerate(tokens)}
    has = torch.zeros(len(prompts), len(tokens))
    for row, prompt in enumerate(prompts):
        has[row, [column[token] for token in prompt]] = 1.0
    shared = has @ has.T
    either = has.sum(1, keepdim=True) + has.sum(1) - shared
    similarity = (shared / either).masked_fill(shared == either, 0.0)
    values, indices = similarity.topk(min(NUM_SIMILAR, len(prompts)), dim=1)
    return [
        [index for value, index in zip(*row, strict=True) if value > 0]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
