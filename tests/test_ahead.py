"""A file read by another process gives what it gives when read here, and its faults."""

import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.config import Source
from rlhf_core.errors import InputError
from tasks.readers import SourceReader, ahead, examples_of

ROWS = "".join(f'{{"prompt": "p{i}", "response": "{i % 7}{" words" * 40}"}}\n' for i in range(5000))
BAD = '{"prompt": "p", "response": null}\nno JSON\n{"prompt": "q", "response": "r"}\n'
DOCUMENTS = '{"text": "words", "split": "sft"}\n{"text": "more", "split": "ppo"}\n'
ONE_SPLIT: dict[str, Any] = {"role": "corpus", "columns": {"split": "split"}, "splits": ["sft"]}


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LARGE_BYTES", 0)
    monkeypatch.setattr(ahead, "_num_cores", lambda: 2)


def reader_of(path: Path, text: str, **fields: Any) -> SourceReader:
    path.write_text(text, encoding="utf-8")
    source = Source(**({"path": path.name, "role": "demonstrations"} | fields))
    return SourceReader(source, name="x", data_dir=path.parent, max_rejected_share=0.01)


@pytest.mark.parametrize(("text", "fields"), [(ROWS + BAD, {}), (DOCUMENTS, ONE_SPLIT)])
def test_all_examples_and_all_that_is_told_of_them(
    tmp_path: Path, text: str, fields: dict[str, Any]
) -> None:
    here, there = (reader_of(tmp_path / "x.jsonl", text, **fields) for _ in range(2))
    here._max_rejected_share = there._max_rejected_share = 0.5
    expected = list(here.examples())
    assert list(examples_of(there)) == expected
    assert expected
    assert here.rejected == there.rejected != []
    assert here.summary() == there.summary()
    assert here.num_rows == there.num_rows


def test_a_fault_of_the_file_is_the_same_line(tmp_path: Path) -> None:
    reader = reader_of(tmp_path / "x.jsonl", BAD)
    with pytest.raises(InputError, match="2 of 3 rows") as there:
        list(examples_of(reader))
    with pytest.raises(InputError) as here:
        list(reader_of(tmp_path / "x.jsonl", BAD).examples())
    assert str(here.value) == str(there.value)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started, in their order."""
    processes: list[Any] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **named: Any) -> Any:
        processes.append(popen(*arguments, **named))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def test_a_killed_process_is_an_error_and_no_end(tmp_path: Path, started: list[Any]) -> None:
    examples = examples_of(reader_of(tmp_path / "x.jsonl", ROWS * 20))
    assert len(list(itertools.islice(examples, 10))) == 10
    os.kill(started[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="read x has ended with exit code -9"):
        list(examples)


def test_nobody_reads_on_when_nobody_listens(tmp_path: Path, started: list[Any]) -> None:
    examples = examples_of(reader_of(tmp_path / "x.jsonl", ROWS * 20))
    next(examples)
    examples.close()
    assert started[0].poll() is not None
