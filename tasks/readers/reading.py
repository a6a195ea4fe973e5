"""A source of the configuration as a stream of examples, with every bad row kept and counted."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlhf_core.config import Source
from rlhf_core.errors import InputError
from tasks.readers.columns import map_columns
from tasks.readers.csv_rows import read_csv
from tasks.readers.files import file_format, find_file, is_local_dataset
from tasks.readers.huggingface_rows import read_dataset
from tasks.readers.json_rows import read_json, read_json_lines
from tasks.readers.parquet_rows import parquet_columns, read_parquet
from tasks.readers.rankings import Ranking, parse_ranking
from tasks.readers.rows import BadRow, Row, RowError, shown
from tasks.readers.texts import (
    Demonstration,
    Document,
    PromptExample,
    parse_demonstration,
    parse_document,
    parse_prompt,
)

Example = Document | PromptExample | Demonstration | Ranking

_PARSERS: Final[dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Example]]] = {
    "corpus": parse_document,
    "prompts": parse_prompt,
    "demonstrations": parse_demonstration,
    "rankings": parse_ranking,
}
_ROW_READERS: Final[dict[str, Callable[[Path], Iterator[Row | BadRow]]]] = {
    "jsonl": read_json_lines,
    "json": read_json,
    "csv": read_csv,
}
_LOOK_AHEAD_ROWS: Final = 100
"""Rows of which the columns are taken where no header says them; the first may lack a field."""

_SHOWN_REASONS: Final = 3


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is no example, for the table of rejected rows."""

    source: str
    line: int
    reason: str
    content: str


class SourceReader:
    """Reads one source of kind file or huggingface once, from its first row to its last.

        reader = SourceReader(source, name="train.csv", data_dir=..., max_rejected_share=0.01)
        for line, example in reader.examples():
            if no_use_for(example):
                reader.reject("why")

    Attributes:
        rejected: the bad rows so far.
        num_rows: rows so far, the bad ones among them.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        data_dir: Path,
        max_rejected_share: float,
        share_field: str = "ingest.max_rejected_share",
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            source: what to read.
            name: what tables call it.
            data_dir: where relative paths are looked up first.
            max_rejected_share: share of bad rows above which `examples` ends with an error.
            share_field: the setting that this share is, for the message.
        """
        self.rejected: list[Rejected] = []
        self.num_rows = 0
        self._source = source
        self._name = name
        self._data_dir = data_dir
        self._max_rejected_share = max_rejected_share
        self._share_field = share_field
        self._current: Row | None = None
        self._where = name
        self._counts_lines = True

    def examples(self) -> Iterator[tuple[int, Example]]:
        """Line and example of each good row.

        Raises:
            InputError: the source cannot be read, has no rows, its columns are unclear, or too many
                rows were rejected; one line with what, where and what to do.
        """
        parse = _PARSERS[self._source.role]
        rows, columns = self._open()
        for row in rows:
            self.num_rows += 1
            if isinstance(row, BadRow):
                self.rejected.append(Rejected(self._name, row.line, row.reason, row.content))
                continue
            self._current = row
            try:
                example = parse(row.values, columns)
            except RowError as fault:
                self.reject(str(fault))
                continue
            yield row.line, example
        self._check_share()

    def reject(self, reason: str) -> None:
        """Reject the row whose example came last."""
        row = self._current
        assert row is not None, "reject is for the example that came last"
        content = shown(row.values if row.content is None else row.content)
        self.rejected.append(Rejected(self._name, row.line, reason, content))

    def _open(self) -> tuple[Iterator[Row | BadRow], dict[str, str]]:
        source = self._source
        rows: Iterator[Row | BadRow]
        if source.kind == "huggingface":
            folder = is_local_dataset(source, self._data_dir)
            self._where, self._counts_lines = str(folder or source.path), False
            rows = read_dataset(source, folder)
        else:
            path = find_file(source.path or "", self._data_dir)
            self._where = str(path)
            kind = file_format(path)
            self._counts_lines = kind in ("jsonl", "csv")
            if kind == "parquet":
                found = parquet_columns(path)
                columns = self._map(found)
                used = [column for column in found if column in columns.values()]
                return self._limited(read_parquet(path, used)), columns
            rows = _ROW_READERS[kind](path)
        rows = self._limited(rows)
        head = list(itertools.islice(rows, _LOOK_AHEAD_ROWS))
        if not head:
            return iter(()), {}
        good = [row.values for row in head if isinstance(row, Row)]
        # A file of nothing but bad rows is told by their reasons, not by the columns it lacks.
        columns = self._map(list(dict.fromkeys(itertools.chain(*good)))) if good else {}
        return itertools.chain(head, rows if good else _as_bad(rows)), columns

    def _limited(self, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
        return itertools.islice(rows, self._source.limit)

    def _map(self, found: list[str]) -> dict[str, str]:
        return map_columns(self._source.role, self._source.columns, found, where=self._where)

    def _check_share(self) -> None:
        if not self.num_rows:
            raise InputError(f"{self._where}: has no rows; give a file with rows, or take it out")
        share = len(self.rejected) / self.num_rows
        if share <= self._max_rejected_share:
            return
        first = "; ".join(
            f"{self._where}{':' if self._counts_lines else ' row '}{bad.line}: {bad.reason}"
            for bad in self.rejected[:_SHOWN_REASONS]
        )
        raise InputError(
            f"{self._where}: {len(self.rejected)} of {self.num_rows} rows ({share:.2%}) are bad, "
            f"more than {self._share_field} = {self._max_rejected_share:.2%}; repair them, or "
            f"raise {self._share_field}; the first: {first}"
        )


def _as_bad(rows: Iterator[Row | BadRow]) -> Iterator[BadRow]:
    """The rows behind a head without a good one: the columns were never seen, so none is usable."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        else:
            reason = f"the first {_LOOK_AHEAD_ROWS} rows are bad, so the columns are unknown"
            yield BadRow(row.line, reason, shown(row.content or row.values))
