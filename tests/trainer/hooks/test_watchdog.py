"""The watchdog of rank 1 while rank 0, here a file that is written for it, saves and then falls behind."""

import subprocess
import sys
from pathlib import Path

from common.code import ROOT
from trainer.hooks.watchdog import EXIT_CODE

RANK_1 = """
import json, sys, time
from pathlib import Path
import torch
from cluster.launch import Worker
from common.files import write_json_atomic
from trainer.hooks.watchdog import Watchdog

folder, timeout, saving, silent = Path(sys.argv[1]), *map(float, sys.argv[2:])
watchdog = Watchdog(folder, Worker(1, 2, torch.device("cpu")), timeout, lambda: False)
watchdog(8, None, None)
end = time.monotonic() + saving
while time.monotonic() < end:
    beat = {"rank": 0, "step": 8, "saved_unix_seconds": time.time(), "pid": 1, "unix_seconds": time.time()}
    write_json_atomic(folder / "heartbeats" / "rank-0.json", beat)
    time.sleep(timeout / 10)
time.sleep(silent)
watchdog.close()
"""


def test_the_clock_goes_on_when_a_save_has_ended_from_where_it_stood(tmp_path: Path) -> None:
    """It is not over at once, although the last step was longer ago by then; nor does it stand still for ever."""
    seconds = {"patient": ("4", "7", "1"), "stuck": ("4", "7", "60")}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", RANK_1, str(tmp_path / name), *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, arguments in seconds.items()
    }
    output = {name: process.communicate(timeout=120)[1] for name, process in running.items()}
    assert running["patient"].returncode == 0, output["patient"]
    assert running["stuck"].returncode == EXIT_CODE, output["stuck"]
    assert "no step for 4 s after step 8: rank 0 (pid 1) is silent" in output["stuck"]
