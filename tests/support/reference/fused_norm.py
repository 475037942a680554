"""Run the fused norm on a device and say, as JSON, how far it is from float64 by torch's operations.

TRITON_INTERPRET=1 python tests/support/reference/fused_norm.py [cpu|cuda]
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from models import philox
from models.kernels.dropout import CounterDropout, MaskSource
from models.kernels.norm import Norm, fuse_norms

CHANNELS = (128, 256, 384, 512, 768, 1024)
COUNTERS = torch.tensor([3, 2**40 + 1])
REPEATED = ("split", "narrow")
NAMES = ("y", "x", "weight", "bias", "shift")


def make_norm(channels: int, silu: bool = True) -> Norm:
    norm = Norm(32, channels, 1e-6, silu)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.normal_(norm.bias)
    return norm


def drop(device: str, num: int = 2, layer: int = 1) -> CounterDropout:
    key = philox.stream_key(5, "train/dropout")
    return CounterDropout(0.3, layer, MaskSource(COUNTERS[:num].to(device), key))


def values(norm: Norm, x: Tensor, shift: Tensor | None, dropout: CounterDropout | None, grad: Tensor) -> list[Tensor]:
    """The result and all gradients, in float64 on the CPU."""
    inputs = [x.detach().requires_grad_(), norm.weight, norm.bias]
    if shift is not None:
        inputs.append(shift.detach().requires_grad_())
    y = norm(inputs[0], inputs[3] if shift is not None else None, dropout)
    found = torch.autograd.grad(y, inputs, grad.to(y.dtype))
    return [tensor.detach().double().cpu() for tensor in (y, *found)]


def compare(
    x: Tensor, norm: Norm, device: str, shifted: bool = True, drops: bool = True, twice: bool = False
) -> dict[str, Any]:
    """The largest error of each value, relative to its largest; whether two calls agree to the bit (None: one call);
    whether the same elements were dropped."""
    shift = torch.randn(x.shape[:2]).to(x.dtype) if shifted else None
    grad = torch.randn(x.shape).to(x.dtype)
    dropout = drop("cpu", len(x)) if drops else None
    exact = values(norm.double(), x.double(), None if shift is None else shift.double(), dropout, grad.double())
    norm.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    fuse_norms(norm.to(device))
    dropout = drop(device, len(x)) if drops else None
    arguments = (norm, x.to(device), None if shift is None else shift.to(device), dropout, grad.to(device))
    found = values(*arguments)
    errors = {
        name: ((one - other).abs().max() / other.abs().max()).item()
        for name, one, other in zip(NAMES, found, exact, strict=False)
    }
    equal = None
    if twice:
        equal = all(torch.equal(one, other) for one, other in zip(found, values(*arguments), strict=True))
    kept_alike = torch.equal(found[0] == 0, exact[0] == 0)
    return {"errors": errors, "equal": equal, "kept": kept_alike}


def non_finite(value: float, device: str) -> bool:
    """Whether NaN stands where torch's operations have it, when one element is not a number, and nowhere else."""
    norm, x = make_norm(128), torch.randn(2, 128, 3, 3)
    x[1, 5, 1, 1] = value
    expected = norm(x).isnan()
    fuse_norms(norm.to(device))
    return bool(expected.any()) and torch.equal(norm(x.to(device)).isnan().cpu(), expected)


def main(device: str = "cpu") -> None:
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for channels in CHANNELS:
        found[str(channels)] = compare(
            torch.randn(1 if channels > 256 else 2, channels, 5, 3) * 2 + 30, make_norm(channels), device
        )
    found["split"] = compare(torch.randn(1, 64, 41, 25) + 3, make_norm(64), device, drops=False, twice=True)
    found["one pixel"] = compare(torch.randn(1, 128, 1, 1), make_norm(128), device)
    found["narrow"] = compare(torch.randn(2, 32, 3, 4), make_norm(32), device, shifted=False, twice=True)
    found["plain"] = compare(torch.randn(2, 128, 3, 3), make_norm(128, silu=False), device, shifted=False, drops=False)
    strided = torch.randn(2, 256, 3, 8)[:, ::2, :, 1::2]
    found["strided"] = compare(strided, make_norm(128), device)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        found[str(dtype)] = compare(torch.randn(2, 128, 3, 3).to(dtype), make_norm(128), device)
    found["nan"], found["inf"] = non_finite(float("nan"), device), non_finite(float("inf"), device)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
