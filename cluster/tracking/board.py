"""TensorBoard as a second reader of the spool: event files of what MLflow gets. Only here is tensorboard imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.run_directory import RUN, SPOOL
from cluster.tracking.spool import read_events


class BoardWriter:
    """Writes one run's metrics below `folder`, which `tensorboard --logdir` shows: a folder for each writer of the
    spool, since points of one that become void must not take those of another with them.

    The spool and whoever else reads it are left alone. Each BoardWriter writes everything anew.
    """

    def __init__(self, run_directory: Path, folder: Path):
        """Raises FileNotFoundError if there is no such run, ValueError if the package is not installed."""
        if not (run_directory / RUN).exists():
            raise FileNotFoundError(f"{run_directory} holds no {RUN}: give a run's own folder")
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401
        except ImportError as error:
            raise ValueError("TensorBoard needs another package: pip install 'rayddpm[tensorboard]'") from error
        self._spool, self._folder = run_directory / SPOOL, folder
        self._streams: dict[Path, _Stream] = {}

    def drain(self) -> int:
        """Write what is new in the spool; the number of points."""
        num_points = 0
        for path in sorted(self._spool.glob("*.jsonl")):
            if path not in self._streams:
                self._streams[path] = _Stream(path, self._folder / path.stem)
            num_points += self._streams[path].drain()
        return num_points

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


class _Stream:
    """From one file of the spool to one of TensorBoard's."""

    def __init__(self, spool_file: Path, folder: Path):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._spool_file, self._offset = spool_file, 0
        self._last_steps: dict[str, int] = {}
        self._file = EventFileWriter(str(folder))
        self._begin(0, 0.0)  # a TensorBoard that has read the earlier files forgets them

    def drain(self) -> int:
        num_points = 0
        for event, offset in read_events(self._spool_file, self._offset):
            if event["type"] == "metrics":
                num_points += self._write(event["values"], event["step"], event["time"])
            elif event["type"] == "start":
                self._begin(event["step"] + 1, event["time"])
            self._offset = offset
        self._file.flush()
        return num_points

    def close(self) -> None:
        self._file.close()

    def _begin(self, step: int, unix_seconds: float) -> None:
        """Points at `step` and beyond are void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._last_steps = {name: min(last, step - 1) for name, last in self._last_steps.items()}
        session = SessionLog(status=SessionLog.START)
        self._file.add_event(Event(wall_time=unix_seconds, step=step, session_log=session))

    def _write(self, values: Mapping[str, Any], step: int, unix_seconds: float) -> int:
        """Of two points at one step the first counts, as in reports. TensorBoard's numbers are float32."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        fresh = {name: value for name, value in values.items() if step > self._last_steps.get(name, -1)}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in fresh.items()])
        if fresh:
            self._file.add_event(Event(wall_time=unix_seconds, step=step, summary=summary))
        self._last_steps |= dict.fromkeys(fresh, step)
        return len(fresh)
