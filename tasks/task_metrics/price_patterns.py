"""How people say a price: the table of priceRange (low, mid, high)."""

from tasks.task_metrics.pattern_rows import HIDES, HINTS, STATES, make_rows

_LOW_PRICE = r"cheap(?:er|ly|est)?|low(?:er|ly|est)?|budget|bargain|reduced|discounted|small|modest"
_MID_PRICE = (
    r"moderat\w*|mid(?:dle|dling)?|medium|average(?:ly)?|standard|normal|intermediate|median|mean"
)
_HIGH_PRICE = r"high(?:er|ly|est)?|expensive|upper|top|premium|steep|large|hefty"
_FAIR_PRICE = r"reasonabl[ey]|affordabl[ey]|fair(?:ly)?|decent(?:ly)?|acceptable|not too bad"
_GOOD_PRICE = r"good|great|nice|excellent|low cost|amazing|fantastic|attractive|competitive|best"
_PRICE = (
    r"(?:(?:food|menu|meal|end|mid|range|ranged?s?|level|of|to|in|cost|for|the|its|their) ){0,3}?"
    r"(?:pric(?:e[sd]?|ings?)|cost\w*|menu range|range)"
)
_PRICE_LINK = (
    r"(?:pric\w+|costs?)(?: (?!and\b|but\b)(?:range[sd]?|ranging|bracket|category|point|level"
    r"|rates?|is|are|was|being|be|of|in|at|on|to|the|an?|its|their|for|from|with|which|that|has"
    r"|have|can|will|tend\w*|seems?|fall\w*|runs?|side|end|very|quite|rather|pretty|fairly"
    r"|relatively|slightly|somewhat|little|bit|too|considered|all|there|here|food|foods|meals?|menu|items"
    r"|about|around|only|also|just|NAME|english|chinese|french|indian|italian|japanese)){0,9}"
)
# "a low price range high customer rating": the second adjective belongs to the rating.
_NOT_RATING = (
    r"(?! (?:(?:customer|costumer|consumer|star|user)s? )?(?:rat|review|quality|star|rank))"
)
# "a high customer rating and price range" may speak of both.
_AND_PRICE = r"(?:customer )?rat\w+,? (?:and )?(?:an? |the |its )?(?:pric\w+|costs?)"
POUNDS = r"(?:gbp|pounds?|quid|euros?|l|e|f|p)"
_MORE = (
    r"(?:more|greater|higher|over|above|upwards?|exceed\w*|excess|at least|minimum|min|starts?"
    r"|starting|begin\w*|plus|from|beyond|costlier)"
)
_LESS = (
    r"(?:less|lower|under|below|cheaper|fewer|up to|within|at most|maximum|max|no more|not more)"
)
_AMOUNT = r"(?: (?:than|of|the|at|is|or|a|equal|to|in|for|from|price|cost|usually|about))*"
PRICES = make_rows(
    (
        "mid",
        STATES,
        rf"(?:{POUNDS} ?)?(?:20|twenty) ?{POUNDS}? ?(?:to|and|or|through|till?|up to)? ?"
        rf"(?:{POUNDS} ?)?(?:25|twenty five)",
    ),
    ("low", STATES, rf"{_LESS}{_AMOUNT} (?:{POUNDS} ?)?(?:20|twenty)(?: ?{POUNDS})?"),
    ("low mid", STATES, rf"{_LESS}{_AMOUNT} (?:{POUNDS} ?)?(?:25|30|thirty)(?: ?{POUNDS})?"),
    ("high", STATES, rf"{_MORE}{_AMOUNT} (?:{POUNDS} ?)?(?:30|thirty)(?: ?{POUNDS})?"),
    ("mid high", STATES, rf"{_MORE}{_AMOUNT} (?:{POUNDS} ?)?(?:20|25|twenty)(?: ?{POUNDS})?"),
    ("high", STATES, rf"{POUNDS} ?30|30 ?{POUNDS}|thirty pounds?|30 price range"),
    ("low mid", STATES, rf"{POUNDS} ?2[05]|2[05] ?{POUNDS}|(?:twenty|20) (?:five )?pounds?"),
    (
        "",
        HIDES,
        r"(?:moderate(?:ly)?|mid ?range) (?:customer )?(?:rat|rank|review|scor|qualit)\w+",
    ),
    # "~" is an amount that a row above took out: "prices average more than £30" is not average.
    ("", HIDES, r"average(?:s|d)?(?: (?:price|cost)s?)?(?: (?:is|of|at|a))*(?= +~)"),
    ("mid high", STATES, r"not (?:\w+ ){0,2}?(?:cheap|inexpensive)"),
    ("low mid", STATES, r"not (?:\w+ ){0,2}?(?:expensive|pricey|costly)"),
    ("low", STATES, r"(?:less|least) expensive|inexpensive\w*|unexpensive"),
    ("mid", STATES, rf"(?:within|in|of) (?:an? |the )?average {_PRICE}"),
    ("high", STATES, rf"(?:above|(?:higher|more|greater) than)(?: the| an)? average(?: {_PRICE})"),
    ("low", STATES, rf"(?:below|(?:lower|less) than)(?: the| an)? average(?: {_PRICE})"),
    ("mid", STATES, rf"(?:{_MID_PRICE}) (?:to high |high )?{_PRICE}"),
    ("low", STATES, rf"(?:{_LOW_PRICE}) {_PRICE}"),
    ("high", STATES, rf"(?:{_HIGH_PRICE}) {_PRICE}"),
    ("low mid", STATES, rf"(?:{_FAIR_PRICE}) {_PRICE}"),
    ("low mid", HINTS, rf"(?:{_GOOD_PRICE}) {_PRICE}"),
    ("high", STATES, rf"{_PRICE_LINK} (?:above|(?:higher|more) than)(?: the| an)? average"),
    ("low", STATES, rf"{_PRICE_LINK} (?:below|(?:lower|less) than)(?: the| an)? average"),
    ("mid", STATES, rf"{_PRICE_LINK} (?:{_MID_PRICE}){_NOT_RATING}"),
    ("low", STATES, rf"{_PRICE_LINK} (?:{_LOW_PRICE}){_NOT_RATING}"),
    ("high", STATES, rf"{_PRICE_LINK} (?:{_HIGH_PRICE}){_NOT_RATING}"),
    ("low mid", STATES, rf"{_PRICE_LINK} (?:{_FAIR_PRICE}){_NOT_RATING}"),
    ("low mid", HINTS, rf"{_PRICE_LINK} (?:{_GOOD_PRICE}){_NOT_RATING}"),
    ("mid", HINTS, rf"(?:{_MID_PRICE}) {_AND_PRICE}"),
    ("low", HINTS, rf"(?:{_LOW_PRICE}) {_AND_PRICE}"),
    ("high", HINTS, rf"(?:{_HIGH_PRICE}) {_AND_PRICE}"),
    ("low", STATES, r"cheap(?:er|ly|est)?|low cost|economical\w*|budget|bargains?"),
    ("low mid", STATES, r"affordab\w+"),
    ("low mid", HINTS, r"reasonabl[ey]|(?:good |great )?value|deals?"),
    ("high", STATES, r"expensive\w*|pric(?:e?y|ier)|costly|over ?priced|high end|up ?scale"),
    ("high", HINTS, r"luxur\w+|fancy|posh|exclusive|up ?market|fine dining|premium"),
    ("mid", STATES, r"moderate(?:ly)?|mid ?(?:range|priced?)"),
)
