"""A large file is read by a process of its own, so that what becomes of its examples has a core."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

from rlhf_core.errors import InputError
from tasks.readers.formats import Example
from tasks.readers.reading import SourceReader

LARGE_BYTES = 32 << 20
"""Smaller files are read before the process has begun."""

_BATCH_ROWS = 2_000


def examples_of(reader: SourceReader) -> Iterator[tuple[int, Example]]:
    """`reader.examples()`; what `reader` tells of them is known some rows later.

    Raises:
        InputError: as `examples`.
        RuntimeError: the process was killed.
    """
    if (os.cpu_count() or 1) < 2 or reader.num_bytes() < LARGE_BYTES:
        yield from reader.examples()
        return
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                pickle.dump(reader, process.stdin)
            yield from _received(process.stdout, reader)
        except EOFError:
            raise RuntimeError(
                f"the process that read {reader.name} has ended with exit code {process.wait()}"
            ) from None
        finally:
            process.kill()


def _received(stream: IO[bytes], reader: SourceReader) -> Iterator[tuple[int, Example]]:
    while True:
        # From a process that this one has started, and from nobody else.
        kind, value = pickle.load(stream)
        if kind == "fault":
            raise value
        if kind == "end":
            vars(reader).update(value)
            return
        reader.num_rows, examples = value
        yield from examples


def _send(reader: SourceReader, stream: IO[bytes]) -> None:
    def send(kind: str, value: Any) -> None:
        stream.write(pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL))
        stream.flush()

    batch: list[tuple[int, Example]] = []
    try:
        for found in reader.examples():
            batch.append(found)
            if len(batch) == _BATCH_ROWS:
                send("examples", (reader.num_rows, batch))
                batch = []
        send("examples", (reader.num_rows, batch))
        send("end", vars(reader))
    except InputError as fault:
        send("fault", fault)


def main() -> None:
    """Send the examples of the reader that comes in."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other's, who ends this process
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        _send(pickle.load(sys.stdin.buffer), stream)
