"""The slots of the E2E data, their values, and how people say them: one table per slot.

`pattern_rows` says how a table is read; the two largest have files of their own.
"""

from tasks.task_metrics.pattern_rows import DENIES, HIDES, HINTS, STATES, Row, make_rows
from tasks.task_metrics.price_patterns import PRICES
from tasks.task_metrics.rating_patterns import RATINGS

# The MR writes prices and ratings on two scales each (words, and pounds or points), and people
# swap them freely, so both map to one of three levels.
SLOT_VALUES: dict[str, dict[str, str]] = {
    "eatType": {"pub": "pub", "coffee shop": "coffee", "restaurant": "restaurant"},
    "food": {
        "chinese": "chinese",
        "english": "english",
        "fast food": "fast",
        "french": "french",
        "indian": "indian",
        "italian": "italian",
        "japanese": "japanese",
    },
    "priceRange": {
        "cheap": "low",
        "less than gbp 20": "low",
        "moderate": "mid",
        "gbp 20 25": "mid",
        "high": "high",
        "more than gbp 30": "high",
    },
    "customer rating": {
        "low": "low",
        "1 out of 5": "low",
        "average": "mid",
        "3 out of 5": "mid",
        "high": "high",
        "5 out of 5": "high",
    },
    "area": {"riverside": "river", "city centre": "city"},
    "familyFriendly": {"yes": "yes", "no": "no"},
}
VENUE_SLOTS = ("name", "near")
SLOTS = (*VENUE_SLOTS, *SLOT_VALUES)

# "Restaurant" is also the general word for any of these venues ("a Chinese restaurant" for a
# coffee shop, often), so it covers the slot and never contradicts or adds.
_EAT_TYPE = make_rows(
    ("pub", HINTS, r"pub (?:food|fare|grub|meals?|lunch)"),
    ("pub", STATES, r"pubs?|public house"),
    ("pub", HINTS, r"bars?|taverns?|inn|ales?|beers?|pints?"),
    ("coffee", STATES, r"coffee ?(?:shops?|houses?|bars?|places?|stores?)|coffeeshops?"),
    ("coffee", HINTS, r"coffees?|caf[ef]s?|caff?e"),
    ("restaurant", HINTS, r"restau?r[ae]u?nts?|resturants?|eater(?:y|ies)|din(?:er|ing|e|ers)"),
    ("restaurant", HINTS, r"bistro|food (?:place|joint|venue|outlet)|place to eat"),
)

# A dish suggests a kitchen without stating it: "pizza" also stands for Fast food.
_FOOD = make_rows(
    ("fast", HINTS, r"(?:french )?fries"),
    ("english", HINTS, r"(?:full )?english breakfasts?"),
    ("", HIDES, r"fast(?:er)? (?:service|delivery|paced)"),
    ("fast", STATES, r"fast ?foods?|fast (?:style |serv\w+ )?(?:foods?|meals?)"),
    ("fast", HINTS, r"quick|fast|(?:ham|cheese)?burgers?|junk food|take ?(?:away|out)s?"),
    ("chinese", STATES, r"chinese|chineese|chines"),
    ("english", STATES, r"english|british|britain|england"),
    ("english fast", HINTS, r"fish (?:and|n) chips|chips"),
    ("french", STATES, r"french|france"),
    ("indian", STATES, r"indian?"),
    ("italian", STATES, r"italian|italy|itallian"),
    ("japanese", STATES, r"japanese|japan|japenese"),
    ("indian", HINTS, r"curry|curries|tandoori|masala"),
    ("italian fast", HINTS, r"pizzas?|pizzeria"),
    ("italian", HINTS, r"pastas?|spaghetti|lasagn[ae]"),
    ("japanese", HINTS, r"sushi|ramen|sashimi|noodles"),
    ("chinese", HINTS, r"noodles|dim sum|dumplings?"),
    ("fast other", STATES, r"american"),
    ("other", STATES, r"mexican|thai|spanish|greek|turkish|korean|vietnamese|german"),
)

_CITY = (
    r"(?:the )?(?:(?:city|town) ?cent(?:er|re|ra)"
    r"|cent(?:er|re|ra)l?(?: of)?(?: the)? ?(?:city|town))"
)
_AREA = make_rows(
    ("river", DENIES, rf"(?:out ?side|away from|out of|far from|not in|not near)(?: of)? {_CITY}"),
    ("", HIDES, rf"(?:north|south|east|west|edge|outskirts|end) of {_CITY}"),
    ("", HIDES, rf"(?:distance|minutes?|walk|miles?|drive) (?:away )?from {_CITY}"),
    ("city", DENIES, r"(?:away from|far from|not (?:in|by|on|near))(?: the)? river\w*"),
    ("river", STATES, r"cent(?:er|re) of (?:the )?river ?sides?(?: area)?"),
    ("river", STATES, r"rivers? ?(?:sides?|banks?|fronts?|view|area)?|riverisde|riveside|thames"),
    ("river", STATES, r"water ?(?:front|side)|(?:by|near|on|along|next to|beside) the water"),
    ("river", HINTS, r"water|bank"),
    ("city", STATES, _CITY),
    (
        "city",
        STATES,
        r"down ?town|(?:heart|middle|core|midst) of (?:the )?(?:city|town)|inner city",
    ),
    ("city", HINTS, r"cent(?:er|re|ral|rally)|city|town"),
)

_FAMILY = (
    r"(?:famil(?:y|ies)|families'|kid'?s?|kiddies|child(?:ren)?(?:'?s)?|childern|youngsters?"
    r"|little ones?|toddlers?|minors?|infants?|young(?:er)? (?:ones|people|guests|customers))"
)
# "families with small children", "kids or families": one group of people.
_GROUP = rf"{_FAMILY}(?:,? (?:with|or|and)(?: small| young| their)? {_FAMILY})*"
_NO = (
    r"(?:not|no|non|none|never|nor|neither|without|cannot|cant|isnt|arent|doesnt|dont|wont|nt|un"
    r"|unsuitable|inappropriate|unwelcoming|unfriendly|lacks?|anti|avoid\w*|bans?|banned"
    r"|prohibit\w*|discourag\w*|forbid\w*|exclud\w*|refus\w*|leave)"
)
# The words between a negation and what it negates; "but", "and", a comma or a full stop end it.
_REACH = (
    r"(?:,? (?:however|sadly|unfortunately),?)?"
    r"(?: (?!but\b|and\b|only\b|though\b|although\b|yet\b|while\b|with\b)[\w']+){0,7}?"
)
_FAMILY_ROWS = make_rows(
    ("", HIDES, r"(?:no|not) (?:further|farther|only|just|doubt|problem|matter|worries)"),
    ("", HIDES, r"family (?:owned|run|business)|friends (?:and|or) family"),
    ("yes", STATES, rf"(?:not|never) (?:un|non ?)(?:friendly|suitable)(?: \w+){{0,3}} {_GROUP}"),
    ("no", STATES, rf"{_NO}{_REACH} {_GROUP}(?: (?:friendly|oriented|allowed|welcome))?"),
    ("no", STATES, r"(?:un|non)(?:family|kid|child)\w*(?: friendly)?"),
    (
        "no",
        STATES,
        rf"{_FAMILY}(?: (?:or|and) {_FAMILY})?(?: friendly)? (?:unfriendly|free|not|no)",
    ),
    (
        "no",
        STATES,
        rf"{_FAMILY}(?: friendly)?(?: [\w']+){{0,2}}? (?:is|are|be|should|may|must|were|do"
        r"|would|will|can)(?: \w+)? (?:not|un\w+|banned|prohibited|discouraged|forbidden|left)",
    ),
    ("no", STATES, rf"{_FAMILY} (?:should |must )?(?:stay|at home|behind|elsewhere)"),
    (
        "no",
        STATES,
        r"(?:adults?|grown ?ups?|over ?(?:18|eighteen)s?)(?:'s?)? (?:only|oriented|exclusive"
        r"|friendly|themed|restaurant|pub|coffee|venue|setting|environment|atmosphere|establishment)",
    ),
    (
        "no",
        STATES,
        r"(?:only|just|exclusive\w*|strictly) (?:\w+ ){0,2}?(?:adults|grown ?ups|over 18s)",
    ),
    (
        "yes",
        STATES,
        rf"adults? and {_FAMILY}|{_FAMILY}(?: friendly)? (?:and|or|as well as) adults?",
    ),
    ("no", STATES, r"(?:for|to|by) adults?"),
    ("yes", STATES, _FAMILY),
    ("yes", HINTS, r"all (?:age groups|ages)|any age|ages"),
    ("no", HINTS, r"adults?|grown ?ups?|over 18s?"),
)

TABLES: dict[str, tuple[Row, ...]] = {
    "eatType": _EAT_TYPE,
    "food": _FOOD,
    "priceRange": PRICES,
    "customer rating": RATINGS,
    "area": _AREA,
    "familyFriendly": _FAMILY_ROWS,
}
