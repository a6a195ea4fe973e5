"""Which prompt belongs to which split: fixed by its source, or by a hash of the prompt alone."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from rlhf_core.config import Split
from rlhf_core.errors import InputError
from tasks.tables import digest_id

SPLITS: tuple[Split, ...] = get_args(Split)
"""All splits, in the order in which their shares are laid out on [0, 1)."""

REWARD_SPLITS: tuple[Split, ...] = ("reward", "reward_heldout")
"""Those whose prompts are sampled for people to rank."""

_SHOWN_CHARACTERS = 80


def unit_hash(text: str, salt: str) -> float:
    """A number in [0, 1) that depends on the text and the salt alone.

    u = (first 53 bits of sha256(salt + text)) / 2^53: exact in a float, and never 1.
    """
    digest = hashlib.sha256((salt + text).encode("utf-8")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2.0**53


def assign_split(
    text: str, allowed: Collection[Split], *, shares: Mapping[Split, float], salt: str
) -> Split:
    """The split of a prompt, among those that its source allows.

    The first split s, in the order of `SPLITS`, with u < (sum of shares up to s) / (sum of all),
    over the allowed splits only. The order of `allowed` and of `shares` does not matter.

    Args:
        text: the NFC-normalised prompt.
        allowed: at least one split.
        shares: relative share per split, >= 0; a split that is not there has 0.
        salt: of the hash.

    Raises:
        InputError: none of the allowed splits has a share.
    """
    candidates = [split for split in SPLITS if split in allowed]
    if len(candidates) == 1:
        return candidates[0]
    candidates = [split for split in candidates if shares.get(split, 0.0) > 0.0]
    if not candidates:
        raise InputError(
            f"ingest.split_shares gives no share to any of {', '.join(allowed)}, which a source "
            "allows; give one of them a share"
        )
    at = unit_hash(text, salt) * sum(shares[split] for split in candidates)
    reached = 0.0
    for split in candidates:
        reached += shares[split]
        if at < reached:
            return split
    return candidates[-1]  # rounding of the sums


@dataclass(slots=True)
class _Claim:
    """What the sources say about one text."""

    text: str
    source: str
    allowed: tuple[Split, ...]
    fixed: bool
    """Whether one source names exactly one split; not where what several allow shrank to one."""
    other: str = ""
    """The source that left no split to agree on."""


class SplitBook:
    """Distinct texts (prompts, or documents), and the splits that all their sources agree on.

    A source that fixes a split wins over those that leave a choice; among those only the splits
    that all allow remain. So a text is in one split, whatever the order of the sources.
    """

    def __init__(self, what: str) -> None:
        """Args: what: `prompt` or `document`, for messages."""
        self._what = what
        self._claims: dict[str, _Claim] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, text: str, source: str, allowed: Collection[Split]) -> tuple[str, bool]:
        """Note that `source` has `text` and where it may go; none allowed means all.

        Returns:
            The text's id, and whether it is new.

        Raises:
            InputError: another source has fixed another split.
        """
        splits = tuple(split for split in SPLITS if split in allowed) or SPLITS
        text_id = digest_id(text)
        claim = self._claims.get(text_id)
        if claim is None:
            self._claims[text_id] = _Claim(text, source, splits, len(splits) == 1)
            return text_id, True
        if claim.allowed != splits or claim.fixed != (len(splits) == 1):
            self._agree(claim, source, splits)
        return text_id, False

    def _agree(self, claim: _Claim, source: str, splits: tuple[Split, ...]) -> None:
        fixed = len(splits) == 1
        if claim.fixed and fixed:
            raise InputError(
                f"{self._what} {claim.text[:_SHOWN_CHARACTERS]!r} is fixed to {claim.allowed[0]} "
                f"by source {claim.source} and to {splits[0]} by source {source}; "
                "take it out of one of them"
            )
        if fixed:
            claim.source, claim.allowed, claim.fixed, claim.other = source, splits, True, ""
        elif not claim.fixed:
            claim.allowed = tuple(split for split in claim.allowed if split in splits)
            if not claim.allowed and not claim.other:
                claim.other = source

    def assign(
        self, *, shares: Mapping[Split, float], salt: str
    ) -> Iterator[tuple[str, str, str, Split]]:
        """Id, text, source and split of each text, in the order in which they came.

        Raises:
            InputError: the sources of a text allow no common split.
        """
        for text_id, claim in self._claims.items():
            if not claim.allowed:
                raise InputError(
                    f"{self._what} {claim.text[:_SHOWN_CHARACTERS]!r} is in source {claim.source} "
                    f"and in source {claim.other}, whose splits have none in common; take it out "
                    "of one of them, or change their splits"
                )
            split = assign_split(claim.text, claim.allowed, shares=shares, salt=salt)
            yield text_id, claim.text, claim.source, split
