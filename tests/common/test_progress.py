"""What a bar and a line say, at several widths, and where there is no terminal."""

import io
import os
import pty
import time
from pathlib import Path

import pytest

from common.progress import Progress, progress


def training() -> Progress:
    shown = Progress("step", 500_000)
    shown.report(123_456, None, "loss 0.0213", "1234 images/s")
    shown.seconds_left = 3723
    return shown


@pytest.mark.parametrize("num_columns", [20, 40, 60, 80, 200])
def test_a_bar_fits_and_keeps_ten_columns_where_there_is_room_for_a_number(num_columns: int) -> None:
    text = training().draw(num_columns).plain
    assert len(text) < num_columns
    assert "step 123456/500000"[: num_columns - 1] in text
    if num_columns >= 40:
        assert text.count("━") + text.count("─") >= 10


def test_sixty_columns_have_bar_count_time_and_loss() -> None:
    text = training().draw(60).plain
    assert text.endswith("step 123456/500000  1:02:03 left  loss 0.0213")


def test_a_wide_bar_is_filled_by_its_share_without_colours() -> None:
    shown = Progress("packing", 4)
    shown.report(1)
    text = shown.draw(200, ascii_only=True).plain
    assert text.startswith("=" * 10 + "-" * 30 + "  packing 1/4")


def test_elsewhere_lines_come_when_something_has_changed(tmp_path: Path) -> None:
    stream = io.StringIO()
    with progress("packing", 100, stream, line_seconds=0.05) as shown:
        for done in (30, 60):
            shown.report(done, None, "2 refused")
            while f"packing {done}/100" not in stream.getvalue():
                time.sleep(0.01)
        time.sleep(0.2)
        shown.report(100)
    lines = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert [line for line in lines if line != "packing 0/100"] == [
        "packing 30/100",
        "packing 60/100",
        "packing 100/100",
    ]


def test_what_takes_a_moment_says_nothing_in_a_log() -> None:
    stream = io.StringIO()
    with progress("packing", 2, stream) as shown:
        shown.advance()
    assert stream.getvalue() == ""


def test_no_color_is_heeded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, progress("packing", 4, stream) as shown:
        shown.report(4)
    output = os.read(master, 65536).decode()
    os.close(master)
    assert "packing 4/4" in output
    assert "\x1b[3" not in output
    assert "\x1b[38" not in output
