"""Take the pictures of docs/EVALUATION.md: a report and the evaluator's page, on a desk in light, a phone in dark.

    python docs/make_screenshots.py STORAGE [--num-steps 2000] [--output docs]

Trains the digits of the demo in STORAGE without Ray, evaluates its checkpoints, and looks at them with Chromium, which
must be installed. What STORAGE has already is not made again.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.code import command
from common.command_line import run_script
from eval.backlog import Selection
from eval.protocol import parse_protocol
from eval.reports.report import write_report
from eval.service.heartbeat import Heartbeat
from eval.web.app import build_app
from tests.eval.web.browser import Browser

PROTOCOL = "fd_efficientnet_lite0_512_ddim20"
DESK, PHONE, GAP = 1280, 420, 40
NUM_COLOURS = 192


def main(storage: Path, num_steps: int = 2000, output: Path = Path("docs")) -> None:
    """Make a run if need be, and take both pictures.

    Args:
        storage: folder of runs; the run is called digits
        num_steps: how long it is trained
        output: folder of the pictures
    """
    storage = storage.resolve()
    make_run(storage, num_steps)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        report = Path(folder) / "report.html"
        write_report([storage / "digits"], report)
        take_picture(report.as_uri(), Path(folder), output / "evaluation-report.png", height=1500)
        with page(storage) as url:
            take_picture(url, Path(folder), output / "evaluation-page.png", height=1080)


def make_run(storage: Path, num_steps: int) -> None:
    run = ("--run.name", "digits", "--run.storage", str(storage), "--train.num_steps", str(num_steps))
    how = ("--preset", "demo", "--launcher", "local", "--checkpoint.every_steps", str(max(1, num_steps // 6)))
    subprocess.run(command("train", *how, *run), check=True)
    evaluate = ("serve", str(storage), "--run", "digits", "--protocol", PROTOCOL, "--order", "oldest", "--once")
    subprocess.run(command("eval", *evaluate), check=True)


@contextmanager
def page(storage: Path) -> Iterator[str]:
    """The evaluator's page on a free port; gives its address."""
    app = build_app(storage, [parse_protocol(PROTOCOL)], Selection())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    evaluator = Heartbeat(storage)
    evaluator.write(None)  # as one that waits for checkpoints
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    evaluator.remove()
    server.should_exit = True
    thread.join()


def take_picture(url: str, folder: Path, file: Path, height: int) -> None:
    """A desk in light beside a phone in dark, in one picture of few colours."""
    browser = Browser(url, folder / f"profile-{file.stem}")
    try:
        browser.wait_for("document.querySelectorAll('svg').length > 0 && document.images.length > 0")
        browser.wait_for("[...document.images].every((image) => image.complete)")
        views = []
        for width, dark in ((DESK, False), (PHONE, True)):
            browser.shows(width, height, dark)
            views.append(Image.open(io.BytesIO(browser.picture(whole=False))).convert("RGB"))
    finally:
        browser.close()
    both = Image.new("RGB", (DESK + GAP + PHONE, height), "white")
    both.paste(views[0], (0, 0))
    both.paste(views[1], (DESK + GAP, 0))
    both.quantize(NUM_COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    run_script(main)
