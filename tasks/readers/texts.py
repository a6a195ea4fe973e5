"""Rows that hold a document, a prompt, or a prompt with its response."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from rlhf_core.config import Split
from tasks.readers.rows import RowError, check_text, normalise_prompt, normalise_response

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Document:
    """A text of the corpus."""

    text: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt without a response."""

    prompt: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and how a person answered it."""

    prompt: str
    response: str
    split: Split | None


def text_of(values: Mapping[str, Any], columns: Mapping[str, str], field: str) -> str:
    """The text of `field`.

    Raises:
        RowError: it is missing, or `check_text` refuses it.
    """
    column = columns[field]
    label = field if field == column else f"{field} (column {column})"
    if column not in values:
        raise RowError(f"{label}: missing")
    return check_text(values[column], label)


def split_of(values: Mapping[str, Any], columns: Mapping[str, str]) -> Split | None:
    """The split that a row fixes in its configured column; None where no column is configured.

    Raises:
        RowError: the split is unknown.
    """
    if "split" not in columns:
        return None
    given = text_of(values, columns, "split").strip()
    for split in SPLITS:
        if split == given:
            return split
    raise RowError(f"split: unknown split {given!r}; known: {', '.join(SPLITS)}")


def parse_document(values: Mapping[str, Any], columns: Mapping[str, str]) -> Document:
    """A row of role corpus."""
    text = normalise_response(text_of(values, columns, "text"))
    return Document(text, split_of(values, columns))


def parse_prompt(values: Mapping[str, Any], columns: Mapping[str, str]) -> PromptExample:
    """A row of role prompts."""
    prompt = normalise_prompt(text_of(values, columns, "prompt"))
    return PromptExample(prompt, split_of(values, columns))


def parse_demonstration(values: Mapping[str, Any], columns: Mapping[str, str]) -> Demonstration:
    """A row of role demonstrations."""
    return Demonstration(
        normalise_prompt(text_of(values, columns, "prompt")),
        normalise_response(text_of(values, columns, "response")),
        split_of(values, columns),
    )
