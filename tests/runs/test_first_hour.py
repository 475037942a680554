"""The first hour of a user whose machine is nobody's favourite: what each command shows, and that it works.

The clone lies in a folder with spaces. The user is not root, the home is read-only, there is no network after the
install, the terminal has 60 columns, the locale is C, and NO_COLOR is set; all of that at once.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.code import PACKAGES, ROOT
from tests.support.data import encoded, photo
from tests.support.machine import cannot_run

pytestmark = pytest.mark.heavy

# Without its powers root is a user like any other, whom a read-only folder stops.
NO_POWERS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_NETWORK = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "-")


class Newcomer:
    """A clone in a folder with spaces, 60 photos beside it, and a home that cannot be written."""

    def __init__(self, folder: Path):
        self.folder = folder / "my first try"
        self.clone, self.home = self.folder / "RayDDPM", folder / "home"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, self.clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        photos = self.folder / "my photos"
        photos.mkdir()
        for i in range(60):
            (photos / f"holiday {i}.jpg").write_bytes(encoded(photo(90, seed=i, height=70), "JPEG"))
        self.home.mkdir(mode=0o555)

    def rayddpm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **{"PATH": os.environ["PATH"], "HOME": str(self.home), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)},
            **{"LANG": "C", "LC_ALL": "C", "COLUMNS": "60", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        }
        powers = NO_POWERS if os.geteuid() == 0 else ()
        command = [*_no_network(), *powers, sys.executable, str(self.clone / "trainer" / "rayddpm.py"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
        )

    def succeeds(self, *arguments: str) -> str:
        """What a command that ends well prints: no colours, tracebacks or warnings of others."""
        finished = self.rayddpm(*arguments)
        shown = finished.stdout + finished.stderr
        assert finished.returncode == 0, shown
        assert "\x1b" not in shown
        assert "Traceback" not in shown
        assert "Warning" not in shown
        assert "atplotlib" not in shown
        return shown


def _no_network() -> tuple[str, ...]:
    """What a command is started by to see no network but loopback."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        cannot_run("unshare or ip is missing")
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not take its network away")
    return NO_NETWORK


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("first-hour"))


def test_there_is_no_network_and_no_writable_home(newcomer: Newcomer) -> None:
    """What the other tests stand on."""
    program = (
        "import os, socket; print(os.access(os.environ['HOME'], os.W_OK)); socket.create_connection(('9.9.9.9', 53), 1)"
    )
    command = [*_no_network(), *(NO_POWERS if os.geteuid() == 0 else ()), sys.executable, "-c", program]
    finished = subprocess.run(
        command, env={**os.environ, "HOME": str(newcomer.home)}, capture_output=True, text=True, check=False
    )
    assert finished.stdout == "False\n"
    assert "Network is unreachable" in finished.stderr


def commands_of_the_page() -> list[list[str]]:
    """The block of docs/DATA.md that leads from a clone to samples, command by command."""
    page = (ROOT / "docs" / "DATA.md").read_text()
    section = page.partition("## From a folder of photos to a page of samples")[2]
    return [shlex.split(line) for line in section.split("```")[1].strip().splitlines()]


def test_five_commands_lead_from_a_clone_to_a_page_of_samples(newcomer: Newcomer) -> None:
    """As they stand in docs/DATA.md, after the install, with a smaller network and less to do."""
    clone, install, *ours = commands_of_the_page()
    assert (clone[:2], install) == (["git", "clone"], ["make", "install"])
    assert [command[:3] for command in ours] == [
        [".venv/bin/rayddpm", *words] for words in (("data", "pack"), ("train", "--preset"), ("models", "sample"))
    ]
    pack, train, sample = ([word.replace("~/photos", "my photos") for word in command[1:]] for command in ours)
    assert "60 RGB images of 32x32 in 1 shard\n" in newcomer.succeeds(*pack)
    size = ("--model.channel-multipliers", "1,1", "--model.num-res-blocks", "1")
    less = ("--train.num-steps", "10", "--train.global-batch-size", "4")
    assert "finished at step 10" in newcomer.succeeds(*train, *size, *less)
    newcomer.succeeds(*sample, "--num-images", "4", "--num-sampling-steps", "2")
    assert np.load(newcomer.folder / "samples" / "samples.npz")["images"].shape == (4, 32, 32, 3)
    with Image.open(newcomer.folder / "samples" / "grid.png") as grid:
        assert min(grid.size) >= 64
    newcomer.succeeds("eval", "run", "runs/photos", "--protocol", "fd_efficientnet_lite0_16_ddim2")
    newcomer.succeeds("eval", "report", "runs/photos")
    assert "data:image/png;base64," in (newcomer.folder / "report.html").read_text()
    assert not list(newcomer.home.iterdir())


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("train", "--preset", "demo", "--launcher", "local"), "RAYDDPM_CACHE"),
        (("train", "--data.path", "digits", "--launcher", "local"), "--run.storage runs"),
        (("cluster", "up"), "--launcher local"),
    ],
)
def test_what_needs_a_home_says_what_to_give_instead(
    newcomer: Newcomer, arguments: tuple[str, ...], advice: str
) -> None:
    if not (newcomer.folder / "digits").exists():
        newcomer.succeeds("data", "demo", "digits", "digits", "--num-images", "20")
    finished = newcomer.rayddpm(*arguments)
    assert finished.returncode == 2
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert advice in line
