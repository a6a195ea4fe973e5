"""What a row of a pattern table is: one way to say a slot, and what saying it does.

A table is read from top to bottom, and the words that a row matches are taken out of the text
before the next row looks at it. Order therefore carries meaning: "not expensive" stands above
"expensive", "5 out of 5" above "5 star", and what a row hides no later row sees.

The tables see a text that `slot_error_rate.normalise` made plain: lower case, no accents, hyphens
as spaces, "n't" as " not", "£20" as "gbp 20", venue names replaced by NAME, NEAR and OTHER.
"""

import re
from dataclasses import dataclass
from enum import Enum


class Strength(Enum):
    """What one mention can do to its slot."""

    STATES = "states"  # covers the slot; contradicts another value; adds a slot
    HINTS = "hints"  # only covers: "great prices" is a usual way to say cheap, but no claim
    DENIES = "denies"  # contradicts a value, covers none: "outside the city centre"
    HIDES = "hides"  # no mention of this slot, though its words look like one


@dataclass(frozen=True)
class Row:
    """One way to say something: the pattern, the values it is compatible with, its strength."""

    pattern: re.Pattern[str]
    values: frozenset[str]
    strength: Strength


def make_rows(*table: tuple[str, Strength, str]) -> tuple[Row, ...]:
    return tuple(
        Row(re.compile(rf"\b(?:{pattern})\b"), frozenset(values.split()), strength)
        for values, strength, pattern in table
    )


STATES, HINTS, DENIES, HIDES = Strength
