"""Which column of a source holds which of our fields: configured, or guessed where it is clear."""

from collections.abc import Collection, Mapping
from typing import Final

from rlhf_core.errors import InputError

REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "corpus": ("text",),
    "prompts": ("prompt",),
    "demonstrations": ("prompt", "response"),
    "rankings": ("prompt", "responses", "annotator"),
}
"""Role -> fields that every row has."""

OPTIONAL: Final[dict[str, tuple[str, ...]]] = {
    "rankings": ("ranks", "scores", "created_at", "seconds"),
}
"""Role -> fields that rows may have; found under exactly this name."""

ONLY_CONFIGURED: Final = ("split",)
"""Read only where `columns` names them: files often have a `split` that means something else."""

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "text": ("content", "document", "body", "story"),
    "prompt": ("instruction", "mr", "question", "input", "query"),
    "response": (
        "completion",
        "answer",
        "output",
        "ref",
        "reference",
        "target",
        "text",
        "chosen",
    ),
    "responses": ("candidates", "completions", "answers", "outputs", "texts"),
    "annotator": ("annotator_id", "worker", "worker_id", "rater", "rater_id", "labeler"),
}
"""Field -> further names that a column is recognised by, in any case."""


def map_columns(
    role: str, configured: Mapping[str, str], found: Collection[str], *, where: str
) -> dict[str, str]:
    """Field -> column for a source.

    A configured column is taken as it is. Else a column of the field's own name is taken, else the
    only one of its `ALIASES` (upper or lower case); none or several are not guessed.

    Args:
        role: the source's role.
        configured: the source's `columns`.
        found: columns of the file.
        where: names the source in messages.

    Raises:
        InputError: a required field has no column, or several could be it; an unknown field; a
            configured column that is not there. Names the source and the columns.
    """
    names = ", ".join(found) or "none"
    known = (*REQUIRED[role], *OPTIONAL.get(role, ()), *ONLY_CONFIGURED)
    mapping: dict[str, str] = {}
    for field, column in configured.items():
        if field not in known:
            raise InputError(
                f"{where}: columns maps {field!r}, but {role} have the fields {', '.join(known)}"
            )
        if column not in found:
            raise InputError(f"{where}: no column {column!r} for {field}; columns found: {names}")
        mapping[field] = column
    free = [column for column in found if column not in mapping.values()]
    for field in REQUIRED[role]:
        if field in mapping:
            continue
        candidates = _candidates(field, free)
        if len(candidates) != 1:
            why = f"could be {' or '.join(candidates)}" if candidates else "is in no column we know"
            raise InputError(
                f"{where}: {field} {why}; columns found: {names}; "
                f"set columns: {{{field}: NAME}} on the source"
            )
        mapping[field] = candidates[0]
    for field in OPTIONAL.get(role, ()):
        if field not in mapping and field in free:
            mapping[field] = field
    return mapping


def _candidates(field: str, columns: Collection[str]) -> list[str]:
    if field in columns:
        return [field]
    own = [column for column in columns if column.strip().lower() == field]
    return own or [column for column in columns if column.strip().lower() in ALIASES.get(field, ())]
