"""Checkpoints that were deleted before their turn, also while nobody looked: each is recorded, and shown by reports."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.run_directory import CHECKPOINTS, EVALUATIONS, SPOOL, checkpoint_step
from cluster.tracking.spool import read_events
from common.checkpoint_names import CHECKPOINT_NAME
from eval.backlog import Job, Selection, checkpoints_of
from eval.protocol import Protocol
from eval.results import read_result
from eval.runs import read_run

_OLD_METRIC = "checkpoint/bytes"
"""Spooled at the step of every committed checkpoint: all that runs say whose spool has no events of checkpoints."""


@dataclass
class DeletedCheckpoints:
    """Of one run: every checkpoint it has ever had, seen in its folder or named by its spool, less what is there."""

    run_directory: Path
    _names: dict[int, str] = field(default_factory=dict)
    _settled: set[tuple[int, str]] = field(default_factory=set)
    _offset: int = 0

    def skipped(self, protocols: Sequence[Protocol], selection: Selection) -> list[Job]:
        """Wanted evaluations that can no longer be made and have no result; each is named once."""
        self._read_spool()
        # Listed after the spool is read: what the spool names was there before, so what is missing is deleted.
        present = checkpoints_of(self.run_directory)
        self._names.update({step: path.name for step, path in present})
        gone = self._names.keys() - {step for step, _ in present}
        manifest_digest = read_run(self.run_directory)["manifest_digest"]
        jobs: list[Job] = []
        folders: dict[int, list[Path]] | None = None
        for step in sorted(step for step in gone if step % selection.every_steps == 0):
            checkpoint = self.run_directory / CHECKPOINTS / self._names[step]
            for protocol in protocols:
                job = Job(self.run_directory, checkpoint, step, protocol.bind(manifest_digest))
                if (step, job.protocol.digest) not in self._settled:
                    self._settled.add((step, job.protocol.digest))
                    folders = self._evaluated() if folders is None else folders
                    found = [folder / job.result_path.name for folder in folders.get(step, [])]
                    if all(read_result(path) is None for path in found):
                        jobs.append(job)
        return jobs

    def _evaluated(self) -> dict[int, list[Path]]:
        """Folders of results by step, under any attempt's name; listed once for all that are asked about."""
        parent = self.run_directory / EVALUATIONS
        folders = defaultdict(list)
        for path in parent.iterdir() if parent.is_dir() else ():
            if CHECKPOINT_NAME.fullmatch(path.name):
                folders[checkpoint_step(path.name)].append(path)
        return folders

    def _read_spool(self) -> None:
        path = self.run_directory / SPOOL / "train.jsonl"
        if not path.exists():
            return
        for event, end in read_events(path, self._offset):
            self._offset = end
            if event["type"] == "checkpoint":
                self._names[event["step"]] = event["name"]
            elif _OLD_METRIC in event.get("values", ()):
                # It does not say which attempt it was.
                self._names.setdefault(event["step"], f"step-{event['step']:08d}-unknown")
