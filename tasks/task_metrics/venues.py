"""The venues of the E2E data, and how a venue's name is found in a text."""

import re
from difflib import SequenceMatcher
from functools import lru_cache

# From the MRs of the E2E data (name and near). A foreign venue can only be told from prose by
# name, so the list is closed; the MR's own venues need not be in it.
KNOWN_VENUES = (
    "Alimentum", "All Bar One", "Aromi", "Avalon", "Bibimbap House", "Blue Spice",
    "Browns Cambridge", "Burger King", "Café Adriatic", "Café Brazil", "Café Rouge",
    "Café Sicilia", "Clare Hall", "Clowns", "Cocum", "Cotto", "Crowne Plaza Hotel",
    "Express by Holiday Inn", "Fitzbillies", "Giraffe", "Green Man", "Loch Fyne",
    "Midsummer House", "Rainbow Vegetarian Café", "Raja Indian Cuisine", "Ranch", "Strada",
    "Taste of Cambridge", "The Bakers", "The Cambridge Blue", "The Cricketers",
    "The Dumpling Tree", "The Eagle", "The Golden Curry", "The Golden Palace", "The Mill",
    "The Olive Grove", "The Phoenix", "The Plough", "The Portland Arms", "The Punter",
    "The Rice Boat", "The Six Bells", "The Sorrento", "The Twenty Two", "The Vaults",
    "The Waterman", "The Wrestlers", "Travellers Rest Beefeater", "Wildwood",
    "Yippee Noodle Bar", "Zizzi",
)  # fmt: skip
# Short forms that people use for a venue's name, by its first plain words.
_SHORT_FORMS = {
    "all bar one": r"all ?bar ?(?:one|1)",
    "bibimbap house": r"bibimbap",
    "browns cambridge": r"browns?(?:'s)?(?: in)? cambridge|browns",
    "crowne plaza hotel": r"crowne?s?(?: plaza)?(?: hotel)?",
    "express by holiday inn": r"express (?:by )?(?:the )?holiday ?inn|holiday ?inn(?: express)?"
    r"|express by holiday|express inn",
    "rainbow vegetarian cafe": r"rainbow (?:vegetarian|veggie)|rainbow cafe?|rainbow",
    "raja indian cuisine": r"raja(?: indian)?(?: cuisine| restaurant)?",
    "the six bells": r"(?:six|6) bells",
    "the twenty two": r"twenty ?two|22",
    "travellers rest beefeater": r"travell?er'?s'? rest(?: beefeater)?|beefeater",
    "yippee noodle bar": r"yippee(?: noodles?)?(?: bar)?",
    "taste of cambridge": r"tastes? of cambridge",
}
MIN_SIMILARITY = 0.84  # difflib ratio: one or two letters off in a name of ten
MIN_WORD_SIMILARITY = 0.6  # of every single word, so that Crown Café is no Rainbow Café
MIN_LENGTH = 5  # of a name; in a shorter one a letter off is another word
_ARTICLE = r"(?: (?:the|a|an|to))?$"
_NEAR_BEFORE = re.compile(
    r"\b(?:near|nearby|by|besides?|to|opposite|past|around|across|along|behind|off|alongside"
    r"|across from|away from|neighbou?r\w*|adjacent)" + _ARTICLE
)
_IN_BEFORE = re.compile(r"\b(?:at|in|from|of|with)" + _ARTICLE)


def _words_pattern(plain_name: str) -> str:
    words = plain_name.removeprefix("the ").split()
    pattern = r"\W*".join(re.escape(word) for word in words)
    return pattern.replace("cafe", "cafe?")


@lru_cache(maxsize=4096)
def own_venue_pattern(plain_name: str) -> re.Pattern[str]:
    """The pattern of one of the MR's venues, with its usual short forms and plurals."""
    forms = [_words_pattern(plain_name)]
    if plain_name in _SHORT_FORMS:
        forms.append(_SHORT_FORMS[plain_name])
    return re.compile(rf"(?<!\w)(?:the )?(?:{'|'.join(forms)})(?:'?s)?(?!\w)")


def foreign_venue_pattern(plain_names: list[str]) -> re.Pattern[str]:
    """One pattern for all known venues; "the" is required where the name has it.

    Without it "the eagle", "the mill" or "the vaults" could not be told from common nouns.
    """
    forms = sorted(
        (("the " if n.startswith("the ") else "") + _words_pattern(n) for n in plain_names),
        key=len,
        reverse=True,
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)")


def _similarity(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def replace_misspelt(text: str, plain_name: str, token: str) -> str:
    """Replaces the words of `text` most like the name, when they are nearly the name."""
    name = plain_name.removeprefix("the ")
    if len(name) < MIN_LENGTH:
        return text
    parts = name.split()
    words = list(re.finditer(r"[\w']+", text))
    best, span = MIN_SIMILARITY, None
    for first in range(len(words) - len(parts) + 1):
        window = words[first : first + len(parts)]
        start, end = window[0].start(), window[-1].end()
        # A window of another length cannot reach the similarity; the test saves most of the time.
        if abs(end - start - len(name)) > 3 or _similarity(name, text[start:end]) < best:
            continue
        if min(map(_similarity, parts, (word[0] for word in window))) >= MIN_WORD_SIMILARITY:
            best, span = _similarity(name, text[start:end]), (start, end)
    return text if span is None else f"{text[: span[0]]}{token}{text[span[1] :]}"


def is_said_as_place(text_before: str, *, has_name: bool) -> bool:
    """Whether the words before a venue make it a landmark ("near the ...") and not the subject.

    "At The Mill" is a landmark when the text has named its venue, and is the venue otherwise.
    """
    before = text_before.rstrip()
    return bool(_NEAR_BEFORE.search(before) or (has_name and _IN_BEFORE.search(before)))
