"""How people say a rating: the table of customer rating (low, mid, high; other = 2 or 4)."""

from tasks.task_metrics.pattern_rows import HIDES, HINTS, STATES, make_rows
from tasks.task_metrics.price_patterns import POUNDS

_RATING = (
    r"(?:(?:by|its|their|the|overall|quality|satisfaction|service|food|customer|costumer|consumer"
    r"|user|guest)s? ){0,4}?"
    r"(?:rat(?:ed?|ings?|es)|review(?:s|ed)?|rank(?:ed|ings?|s)?|scor(?:es?|ed|ing)|approval"
    r"|satisfaction|feedback|regarded|customers?|recommend\w*|opinions?|marks?)"
)
_RATING_LINK = (
    r"(?:rat(?:ed?|ings?|es)|review(?:s|ed)?|rank(?:ed|ings?)?|scor(?:es?|ed))"
    r"(?: (?!and\b|but\b)(?:is|are|was|were|being|be|been|of|in|at|as|on|by|to|for|from|the|an?|its"
    r"|their|it|them|this|has|have|had|which|that|here|very|quite|rather|pretty|fairly|only|just"
    r"|also|customers?|costumers?|range|considered|NAME|place|restaurant|coffee shop|pub)){0,6}"
)
_LOW_RATING = (
    r"(?:very )?(?:low(?:er|ly|est)?|poor(?:ly)?|bad(?:ly)?|terrible|negative(?:ly)?|worst|awful"
    r"|unfavou?rabl[ey]|below average|lower than average|less than average)"
)
_MID_RATING = (
    r"average(?:ly)?|medium|moderate(?:ly)?|mid(?:dle|dling| ?range)?|mediocre|decent|ok(?:ay)?"
    r"|mixed|fair(?:ly)?|standard|reasonabl[ey]|satisfactory|so so"
)
_HIGH_RATING = (
    r"(?:very |extremely )?(?:high(?:er|ly|est)?|excellent(?:ly)?|great|well|top|perfect|best"
    r"|outstanding|superb|positive(?:ly)?|exceptional(?:ly)?|fantastic|amazing|above average"
    r"|favou?rabl[ey]|strong|higher than average)"
)
_OF_FIVE = (
    r"(?: ?(?:stars? )?(?:out (?:of )?|of |over |in )?(?:the )?(?:a )?(?:possible )?(?:5|five)\b)"
)
# "a high price range and customer rating" may speak of both.
_AND_RATING = r"(?:pric\w+ ?(?:range)?s?,? (?:and|and also) (?:its |the )?(?:customer )?ratings?)"
_ANY_RATING = rf"(?:{_LOW_RATING}|{_MID_RATING}|{_HIGH_RATING})"
_NOT_PRICE = r"(?! (?:\w+ )?(?:pric|cost|range))"
# "an average rating of 1 out of 5", "1 out of 5 being its average": an average of ratings, or an
# opinion on the number; the number is the value.
_BEFORE = (
    rf"(?:{_ANY_RATING} (?:(?:customer|star|overall) )?rat\w+ (?:of |is |at |with )?"
    r"(?:only )?(?:an? )?)?"
)
_AFTER = (
    r"(?: ?stars?)?(?:,? (?:being|is|as) (?:its|the|their|an) average(?: (?:customer )?rat\w+)?)?"
    r"(?: average (?:customer )?rat\w+)?"
)


def _points(number: str, word: str) -> str:
    digits = rf"(?:{number}|{word})"
    starred = rf"{digits} ?stars?"
    rated = rf"{_RATING_LINK} {digits}(?! ?(?:gbp|pounds?|quid)\b)(?:{_OF_FIVE})?{_AFTER}"
    return rf"{_BEFORE}(?:{rated}|{digits}{_OF_FIVE}{_AFTER}|{starred}{_AFTER})"


RATINGS = make_rows(
    ("", HIDES, rf"(?:gbp ?)?\d\d+ ?(?:{POUNDS})?"),
    ("low", STATES, rf"(?:1|one) (?:to |or )?(?:2|two)(?: stars?)?{_OF_FIVE}?(?: stars?)?(?!\w)"),
    ("low", STATES, _points("1", "one")),
    ("mid", STATES, _points("3", "three")),
    ("high", STATES, _points("5", "five")),
    ("other", STATES, _points("[024]", "zero|two|four")),
    ("low", STATES, r"not (?:\w+ ){0,2}?(?:well|highly|high|good|great) " + _RATING),
    ("low", STATES, rf"(?:{_LOW_RATING}) {_RATING}"),
    ("high", HINTS, r"(?:highly|well|strongly) (?:recommended|regarded|reviewed)"),
    ("high", STATES, rf"(?:{_HIGH_RATING}) {_RATING}"),
    ("mid high", STATES, rf"good {_RATING}"),
    ("mid", STATES, rf"(?:{_MID_RATING}) {_RATING}"),
    ("low", STATES, rf"{_RATING_LINK} (?:{_LOW_RATING}){_NOT_PRICE}"),
    ("high", STATES, rf"{_RATING_LINK} (?:{_HIGH_RATING}){_NOT_PRICE}"),
    ("mid high", STATES, rf"{_RATING_LINK} good{_NOT_PRICE}"),
    ("mid", STATES, rf"{_RATING_LINK} (?:{_MID_RATING}){_NOT_PRICE}"),
    ("low", HINTS, rf"(?:{_LOW_RATING}) {_AND_RATING}"),
    ("high", HINTS, rf"(?:{_HIGH_RATING}) {_AND_RATING}"),
    ("mid", HINTS, rf"(?:{_MID_RATING}) {_AND_RATING}"),
    ("mid", HINTS, rf"(?:average|mediocre|decent|ok|okay|so so){_NOT_PRICE}"),
    ("low", HINTS, r"poor(?:ly)?|terrible|bad|low quality|lowly|not (?:\w+ )?recommended"),
    (
        "high",
        HINTS,
        r"(?:highly )?recommended|excellent|outstanding|popular|acclaimed|top (?:notch|quality)",
    ),
    (
        "high",
        HINTS,
        r"(?:high|great|good) (?:quality|standards?|service)|well (?:liked|loved)|best",
    ),
)
