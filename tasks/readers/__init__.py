"""Formats that come in: rows of files and datasets, checked, as the examples that steps work with.

Two layers, each of one small module per family, so that a new format is a new module and a line:

- rows: `json_rows`, `csv_rows`, `parquet_rows`, `huggingface_rows` turn bytes into `Row` (line,
  plain dict) or `BadRow` (line, reason, content). They know nothing of what a row means.
- examples: `texts` and `rankings` turn a row into a `Document`, `PromptExample`, `Demonstration` or
  `Ranking`, or raise `RowError` with the reason. They know nothing of files.

`columns` maps our fields to the columns of a file; `files` finds, opens and digests; `reading`
joins them. Nothing is skipped in silence: a row is an example, or it is rejected with its line and
reason. Only blank lines, which hold nothing, are passed over.
"""

from tasks.readers.files import digest_sources, source_names
from tasks.readers.rankings import Ranking
from tasks.readers.reading import Example, Rejected, SourceReader
from tasks.readers.rows import BadRow, Row, RowError
from tasks.readers.texts import Demonstration, Document, PromptExample

__all__ = [
    "BadRow",
    "Demonstration",
    "Document",
    "Example",
    "PromptExample",
    "Ranking",
    "Rejected",
    "Row",
    "RowError",
    "SourceReader",
    "digest_sources",
    "source_names",
]
