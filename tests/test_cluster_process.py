"""A process that must not outlive the one that started it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.trainer_support import ROOT

_CODE = """
import signal, sys
from cluster.process import end_with_parent
end_with_parent(signal.SIGKILL, int(sys.argv[1]))
print("goes on")
"""


@pytest.mark.parametrize(("parent_lives", "expected"), [(True, 0), (False, -signal.SIGKILL)])
def test_a_process_whose_parent_died_before_it_could_ask_for_its_end_ends_at_once(
    parent_lives: bool, expected: int
) -> None:
    """The parent that it is told of is this one, or one that is not its parent (any more)."""
    parent = os.getpid() if parent_lives else os.getppid()
    ended = subprocess.run([sys.executable, "-c", _CODE, str(parent)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == expected
    assert (b"goes on" in ended.stdout) == parent_lives
