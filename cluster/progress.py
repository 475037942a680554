"""A live bar drawn from a run's spool: it needs only the run directory, so it works for a job on a cluster too."""

import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from cluster.spool import read_events
from common.files import read_json


class ProgressBar:
    """`with ProgressBar(run_directory): ...` shows step, loss, images/s and ETA until the block ends.

    On a terminal a bar that redraws itself; elsewhere (logs) a line at most every `line_seconds`.
    """

    def __init__(self, run_directory: Path, stream: TextIO | None = None, line_seconds: float = 10.0):
        self._path = run_directory / "spool" / "train.jsonl"
        self._num_steps = int(read_json(run_directory / "run.json")["num_steps"])
        self._stream = stream or sys.stdout
        self._line_seconds = line_seconds
        self._offset = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> "ProgressBar":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _new_point(self) -> tuple[int, dict[str, float]] | None:
        """The newest (step, values) written since the last look."""
        newest = None
        if self._path.exists():
            for event, self._offset in read_events(self._path, self._offset):  # noqa: B020 (continues where it ended)
                if event["type"] == "metrics" and "train/loss" in event["values"]:
                    newest = event["step"], event["values"]
        return newest

    def _loop(self) -> None:
        if self._stream.isatty():
            self._draw()
        else:
            self._print_lines()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(file=self._stream), refresh_per_second=2) as progress:
            task = progress.add_task("training", total=self._num_steps, numbers="starting workers")
            ended = False
            while not ended:
                ended = self._stop.wait(0.5)
                if point := self._new_point():
                    progress.update(task, completed=point[0], numbers=self._numbers(*point))

    def _print_lines(self) -> None:
        ended, last = False, -self._line_seconds
        while not ended:
            ended = self._stop.wait(0.5)
            if (ended or time.monotonic() - last >= self._line_seconds) and (point := self._new_point()):
                last = time.monotonic()
                print(f"step {point[0]}/{self._num_steps}  {self._numbers(*point)}", file=self._stream, flush=True)

    def _numbers(self, step: int, values: dict[str, float]) -> str:
        per_step = values.get("train/step_seconds", 0.0)
        minutes, seconds = divmod(round(per_step * (self._num_steps - step)), 60)
        return (
            f"loss {values['train/loss']:.4f}  {values.get('train/images_per_second', 0):.0f} images/s  "
            f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        )
