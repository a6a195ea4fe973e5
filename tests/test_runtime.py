"""How a loop meets the machine."""

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from rlhf_core.runtime import keep_freed_memory
if {keep}: keep_freed_memory()
def work(): torch.ones(8 * 2**20).add_(1)
work()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40): work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _can_keep() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)


@pytest.mark.skipif(not _can_keep(), reason="needs the malloc of glibc 2.35 or newer")
def test_freed_memory_is_used_again_instead_of_fresh_pages() -> None:
    """40 times 32 MiB are fresh pages each time, unless the memory is kept."""

    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    fresh = faults(keep=False)
    # Now and then a small block splits a freed one, and one more of 32 MiB is needed.
    assert faults(keep=True) < fresh / 4
