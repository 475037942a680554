"""A process that must not outlive the one that started it, and one that works on the same memory again and again."""

import os
import signal
import subprocess
import sys

import pytest

from common.code import ROOT

_CODE = """
import signal, sys
from common.process import end_with_parent
end_with_parent(signal.SIGKILL, int(sys.argv[1]))
print("goes on")
"""


@pytest.mark.parametrize(("parent_lives", "expected"), [(True, 0), (False, -signal.SIGKILL)])
def test_a_process_whose_parent_died_before_it_could_ask_for_its_end_ends_at_once(
    parent_lives: bool, expected: int
) -> None:
    """The parent that it is given is this one, or one that is not its parent (any more)."""
    parent = os.getpid() if parent_lives else os.getppid()
    ended = subprocess.run([sys.executable, "-c", _CODE, str(parent)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == expected
    assert (b"goes on" in ended.stdout) == parent_lives


_FAULTS = """
import resource, sys
import torch
from common.process import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def steps(number):
    for _ in range(number):
        torch.ones(10 * 2**20)
steps(50)  # after about ten, the free pieces fit what is asked for
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_freed_and_needed_again_costs_no_page_faults() -> None:
    """40 MiB at a time, 10,240 pages; malloc's own way is there for comparison."""
    found = {
        how: int(subprocess.run([sys.executable, "-c", _FAULTS, how], cwd=ROOT, capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert found["kept"] < 100
    assert found["given back"] > 4 * 10_000
