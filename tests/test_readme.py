"""What the README shows can be done, in both languages."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a small machine can do of the commands for own images: the same commands with these at their end.
SMALLER = {
    "trainer/main.py": "--train.num-steps 2 --train.global-batch-size 4 --model.base-channels 32",
    "models": "--num-images 2 --num-sampling-steps 2",
}


def section(heading: str) -> str:
    return ENGLISH.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def commands(page: str) -> list[list[str]]:
    """The lines of all blocks but the tree of folders, each as words without its comment."""
    lines = [line for block in BLOCK.findall(page) if "models/  " not in block for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def python_commands(page: str) -> list[list[str]]:
    return [words for words in commands(page) if words[0] == "python"]


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_languages_have_the_same_headings_commands_pictures_and_links() -> None:
    def shape(page: str) -> list[str]:
        return re.findall(r"^(#+) ", BLOCK.sub("", page), re.MULTILINE)

    def targets(page: str) -> list[str]:
        found = re.findall(r'(?:\]\(|src=")([^)"]+)', page)
        return [target for target in found if not target.startswith("README")]

    assert len(shape(ENGLISH)) > 5
    assert shape(CHINESE) == shape(ENGLISH)
    assert BLOCK.findall(CHINESE) == BLOCK.findall(ENGLISH)
    assert sorted(targets(CHINESE)) == sorted(targets(ENGLISH))
    assert all((ROOT / target).exists() for target in targets(ENGLISH) if not target.startswith("https:"))


@pytest.mark.parametrize(
    "words", [pytest.param(w, id=" ".join(w[1:4])) for w in python_commands(ENGLISH) if w[1] == "-m"]
)
def test_each_command_has_the_options_that_are_shown(words: list[str]) -> None:
    own = words[: words.index("--")] if "--" in words else words
    known = set(re.findall(r"--[a-z][a-z0-9-]*", run([*own[1:4], "--help"], ROOT)))
    assert {word for word in own[4:] if word.startswith("--")} <= known


@pytest.mark.parametrize("script", ["submit", "ray.sbatch", "torchrun.sbatch"])
def test_what_is_submitted_is_a_config(script: str) -> None:
    (words,) = [words for words in commands(ENGLISH) if any(Path(word).name == script for word in words)]
    arguments = words[words.index("--preset") :]
    (preset,) = arguments[1:2]
    assert f'preset = "{preset}"' in run(["trainer/main.py", *arguments, "--print-config"], ROOT)


def test_what_is_not_python_has_its_files_and_says_what_it_needs() -> None:
    for heading in ("8 GPUs", "Slurm, Kubernetes"):
        assert section(heading).lstrip().startswith("Needs:")
        assert len(commands(section(heading))) == 6
    words = [word for command in commands(ENGLISH) for word in command if word.startswith("cluster/deploy/")]
    assert len(words) == 5
    assert all((ROOT / word).exists() for word in words)


@pytest.mark.heavy
def test_the_four_commands_for_own_images_work_as_pasted(tmp_path: Path) -> None:
    shown = python_commands(section("Your images"))
    assert len(shown) == len(commands(section("Your images"))) == 4
    (tmp_path / "photos").mkdir()
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    for words in shown:
        name = words[2] if words[1] == "-m" else words[1]
        run([*words[1:], *SMALLER.get(name, "").split()], tmp_path)
    assert np.load(tmp_path / "samples" / "samples.npz")["images"].shape == (2, 32, 32, 3)
    assert "photos" in (tmp_path / "report.html").read_text()
