"""The image: linted, and made of what is in the checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.code import PACKAGES, ROOT

DOCKERFILE = ROOT / "cluster" / "deploy" / "Dockerfile"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    said = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_the_image_has_every_package_and_runs_as_nobody_special() -> None:
    text = DOCKERFILE.read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert set(PACKAGES) | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == copied
    allowed = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
    assert {f"!{name}" for name in copied} <= set(allowed.splitlines())
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    assert int(user) > 0


@pytest.mark.parametrize("device", ["cpu", "cuda", "tpu"])
def test_the_device_is_one_of_two(device: str) -> None:
    """The case of the RUN line, with pip as it would be called."""
    text = DOCKERFILE.read_text().replace("\\\n", "")
    case = re.search(r'case "\$\{DEVICE\}" in .* esac', text)
    assert case is not None
    script = f'pip() {{ echo "$@"; }}\n{case[0]}'
    said = subprocess.run(["bash", "-c", script], env={"DEVICE": device}, capture_output=True, text=True, check=False)
    assert said.returncode == (2 if device == "tpu" else 0)
    assert ("whl/cpu" in said.stdout) == (device == "cpu")
