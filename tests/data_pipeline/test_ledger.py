import json
import zlib
from pathlib import Path

import pytest

from data_pipeline.commands import main
from data_pipeline.ledger import audit, next_attempt, read_ledger, recorded
from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.shards import open_dataset
from tests.support.trainer import digits

BATCH = 12


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return open_dataset(data)


def order_of(dataset: Dataset) -> SampleOrder:
    return SampleOrder(dataset.manifest.shard_sizes, 5, BATCH, dataset.manifest.digest)


def train(folder: Path, dataset: Dataset, first: int, last: int, world_size: int, lost_rank: int = -1) -> None:
    """An attempt at steps [first, last]; a lost rank has died before the last of them."""
    order, attempt = order_of(dataset), next_attempt(folder)
    for rank in range(world_size):
        with BatchStream(dataset, order, rank, world_size, first) as stream:
            end = last - (rank == lost_rank)
            for batch in recorded(stream, folder, attempt, rank, world_size, dataset, order):
                if batch.step == end:
                    break


def test_a_ledger_says_what_each_worker_was_given(dataset: Dataset, tmp_path: Path) -> None:
    train(tmp_path, dataset, 0, 4, world_size=3)
    order = order_of(dataset)
    for step, entries in read_ledger(tmp_path).items():
        counters = order.counters(step)
        assert sorted(entry.counter for entry in entries) == sorted(counters.tolist())
        of_counter = dict(zip(counters.tolist(), order.samples(counters).tolist(), strict=True))
        for entry in entries:
            assert entry.key == dataset.key(of_counter[entry.counter])
            assert entry.crc32 == zlib.crc32(dataset.read(of_counter[entry.counter]).tobytes())
    found = audit(tmp_path, dataset)
    assert (found.num_steps, found.num_samples, found.attempts) == (5, 60, {1: (0, 3)})


def test_a_later_attempt_takes_the_place_of_the_steps_that_died(dataset: Dataset, tmp_path: Path) -> None:
    train(tmp_path, dataset, 0, 6, world_size=2, lost_rank=1)
    train(tmp_path, dataset, 4, 9, world_size=1)
    train(tmp_path, dataset, 2, 11, world_size=5)
    assert audit(tmp_path, dataset).attempts == {1: (0, 2), 2: (4, 1), 3: (2, 5)}
    assert all(len(entries) == BATCH for entries in read_ledger(tmp_path).values())


def test_a_torn_line_and_an_empty_file_are_what_a_crash_leaves(dataset: Dataset, tmp_path: Path) -> None:
    train(tmp_path, dataset, 0, 3, world_size=2)
    path = tmp_path / "attempt-0001-rank-1.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "coun')
    (tmp_path / "attempt-0002-rank-0.jsonl").touch()
    assert audit(tmp_path, dataset).num_steps == 4
    assert next_attempt(tmp_path) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: None, r"step 2 is not as ordered: missing \[24, .*\], foreign \[\], repeated \[\]"),
        (lambda line: {**line, "step": 3}, r"step 2 is not as ordered: missing \[24, "),
        (lambda line: {**line, "counters": [99, *line["counters"][1:]]}, r"missing \[24\], foreign \[99\]"),
        (lambda line: {**line, "counters": [25, *line["counters"][1:]]}, r"missing \[24\], .* repeated \[25\]"),
        (lambda line: {**line, "keys": ["other", *line["keys"][1:]]}, "step 2, counter 24: the worker was given 'oth"),
        (lambda line: {**line, "crc32": [1, *line["crc32"][1:]]}, "step 2, counter 24: .* with other pixels"),
    ],
    ids=["missing", "late", "foreign", "twice", "key", "pixels"],
)
def test_an_audit_names_the_step_that_is_not_as_ordered(change, message: str, dataset: Dataset, tmp_path: Path) -> None:
    train(tmp_path, dataset, 0, 4, world_size=1)
    path = tmp_path / "attempt-0001-rank-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3] = change(lines[3])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line))
    with pytest.raises(ValueError, match=message):
        audit(tmp_path, dataset)


def test_an_audit_knows_the_data_and_the_length(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data\.ledger true"):
        audit(tmp_path, dataset)
    train(tmp_path / "ledger", dataset, 0, 3, world_size=1)
    with pytest.raises(ValueError, match="step 4 is not as ordered"):
        audit(tmp_path / "ledger", dataset, num_steps=5)
    with (
        open_dataset(digits(tmp_path / "other", num_images=39)) as other,
        pytest.raises(ValueError, match=r"is of data set \w+, this one is"),
    ):
        audit(tmp_path / "ledger", other)


def test_the_command_line_audits(
    data: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, dataset, 0, 3, world_size=2)
    assert main(["audit", str(tmp_path), str(data)]) == 0
    assert "ok: 4 steps, 48 samples, each as ordered and once; attempts: from step 0 on 2" in capsys.readouterr().out
    (tmp_path / "attempt-0001-rank-1.jsonl").unlink()
    assert main(["audit", str(tmp_path), str(data)]) == 2
    assert capsys.readouterr().err.startswith("error: step 0 is not as ordered: missing [")


def test_copies_beside_the_ledger_do_not_count_and_a_damaged_line_is_named(dataset: Dataset, tmp_path: Path) -> None:
    train(tmp_path, dataset, 0, 3, world_size=1)
    path = tmp_path / "attempt-0001-rank-0.jsonl"
    (tmp_path / "attempt-0001-rank-0 (copy).jsonl").write_text(path.read_text())
    assert next_attempt(tmp_path) == 2
    assert audit(tmp_path, dataset).num_steps == 4
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bytes(30) + b"\n" + b"".join(lines[2:]))  # as a power cut may leave it
    with pytest.raises(ValueError, match=r"rank-0\.jsonl is damaged in line 2, which is not JSON"):
        audit(tmp_path, dataset)
