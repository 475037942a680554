"""The fused norm against float64, under Triton's interpreter and on a GPU; and torch's operations beside it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.code import ROOT
from models.kernels.dropout import kept
from tests.support.reference.fused_norm import CHANNELS, REPEATED, drop, make_norm

pytest.importorskip("triton", reason="Triton is not made for this system")

# Errors that the rounding of a result of that dtype and float32 sums give.
TOLERANCES = {"torch.float64": 1e-12, "torch.bfloat16": 2**-7, "torch.float16": 2**-10}
CASES = (*map(str, CHANNELS), "split", "one pixel", "narrow", "plain", "strided", *TOLERANCES)


def run(device: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.reference.fused_norm", device]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    # Triton reads the variable when it is imported, so the interpreter has a process of its own.
    return run("cpu", TRITON_INTERPRET="1")


def check(case: str, found: dict[str, Any]) -> None:
    worst = max(found["errors"].values())
    assert worst < TOLERANCES.get(case, 3e-6), found["errors"]
    assert found["equal"] is (True if case in REPEATED else None)
    assert found["kept"]


@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_masks_are_those_of_torch_in_float64(case: str, interpreted: dict[str, Any]) -> None:
    check(case, interpreted[case])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_not_finite_spreads_as_by_torch(value: str, interpreted: dict[str, Any]) -> None:
    assert interpreted[value] is True


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    found = run("cuda")
    for case in CASES:
        check(case, found[case])
    assert found["nan"] is found["inf"] is True


def test_without_the_kernel_a_norm_is_torchs_operations_to_the_bit() -> None:
    torch.manual_seed(0)
    norm, x, shift = make_norm(64), torch.randn(2, 64, 3, 3), torch.randn(2, 64)
    dropout = drop("cpu")
    expected = F.silu(F.group_norm(x + shift[:, :, None, None], 32, norm.weight, norm.bias, 1e-6))
    expected = torch.where(kept(dropout, x), expected * dropout.scale, 0.0)
    assert torch.equal(norm(x, shift, dropout), expected)
