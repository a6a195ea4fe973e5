"""A large file is read by a process of its own, so that what becomes of its examples has a core."""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any

from rlhf_core.errors import InputError
from tasks.readers.formats import Example
from tasks.readers.rankings import Ranking
from tasks.readers.reading import SourceReader
from tasks.readers.texts import Demonstration

LARGE_BYTES = 32 << 20
"""Smaller files are read before the process has begun."""

_BATCH_ROWS = 2_000
_BATCH_CHARACTERS = 1 << 22
"""Examples are sent together up to so many, or so long ones."""


def examples_of(reader: SourceReader) -> Generator[tuple[int, Example]]:
    """`reader.examples()`; close it when you stop early.

    Of a large file, what `reader` tells of them but for `num_rows` is known after the last one
    only, and `reader.reject` cannot be used.

    Raises:
        InputError: as `examples`.
        OSError: as `examples`.
        RuntimeError: the process was killed, or has a fault.
    """
    if _num_cores() < 2 or reader.num_bytes() < LARGE_BYTES:
        yield from reader.examples()
        return
    # What this process can import, that one can, and nothing from the working directory.
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                pickle.dump(reader, process.stdin)
            yield from _received(process.stdout, reader)
        except (EOFError, pickle.UnpicklingError, BrokenPipeError):
            raise RuntimeError(
                f"the process that read {reader.name} has ended with exit code {process.wait()}"
            ) from None
        finally:
            process.kill()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _received(stream: IO[bytes], reader: SourceReader) -> Iterator[tuple[int, Example]]:
    while True:
        # From a process that this one has started, and from nobody else.
        kind, value = pickle.load(stream)
        if kind == "fault":
            raise value
        if kind == "end":
            vars(reader).update(value)
            return
        reader.num_rows, made_by, lines, columns = value
        yield from zip(lines, map(made_by, *columns), strict=True)


def _send(reader: SourceReader, stream: IO[bytes]) -> None:
    def send(kind: str, value: Any) -> None:
        stream.write(pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL))
        stream.flush()

    def send_batch() -> None:
        # As columns: a tenth of the time of pickling each example.
        if batch:
            lines, examples = zip(*batch, strict=True)
            rows = ((example,) for example in examples) if made_by is _as_it_is else examples
            columns = list(zip(*rows, strict=True))
            send("examples", (reader.num_rows, made_by, lines, columns))
            batch.clear()

    batch: list[tuple[int, Example]] = []
    made_by: Callable[..., Example] = _as_it_is
    size = 0
    for line, example in reader.examples():
        kind = type(example) if isinstance(example, tuple) else _as_it_is
        if kind is not made_by or len(batch) == _BATCH_ROWS or size > _BATCH_CHARACTERS:
            send_batch()
            made_by, size = kind, 0
        batch.append((line, example))
        size += _num_characters(example)
    send_batch()
    send("end", vars(reader))


def _as_it_is(example: Example) -> Example:
    return example


def _num_characters(example: Example) -> int:
    if isinstance(example, Demonstration):  # by far the most
        return len(example.prompt) + len(example.response)
    if isinstance(example, Ranking):
        return len(example.prompt) + sum(map(len, example.texts))
    return len(example[0])


def main() -> None:
    """Send the examples of the reader that comes in."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other's, who ends this process
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _send(pickle.load(sys.stdin.buffer), stream)
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more
    except Exception as fault:
        known = isinstance(fault, InputError | OSError)
        told = fault if known else RuntimeError(f"reading failed:\n{traceback.format_exc()}")
        stream.write(pickle.dumps(("fault", told)))
        stream.flush()
