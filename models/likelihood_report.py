"""The likelihood of a data set as numbers and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.likelihood import Bound, rate_distortion


def summary(bounds: Sequence[Bound]) -> dict[str, Any]:
    """Means over all images in bits per dimension. rate + distortion_bits = bits_per_dim (section 4.3).

    bounds: of at least one image. Raises ValueError if one is not finite.
    """
    total = torch.cat([bound.total for bound in bounds])
    if not torch.isfinite(total).all():
        raise ValueError("the bound is not finite: the network has diverged, or its weights are damaged")
    prior = torch.cat([bound.prior for bound in bounds])
    decoder = torch.cat([bound.terms[:, 0] for bound in bounds])
    spread = float(total.std(correction=1) / len(total) ** 0.5) if len(total) > 1 else None
    return {
        "num_images": len(total),
        "bits_per_dim": float(total.mean()),
        "standard_error": spread,
        "rate": float((total - decoder).mean()),
        "distortion_bits": float(decoder.mean()),
        "prior": float(prior.mean()),
        "rmse_levels": rate_distortion(bounds)[-1]["rmse_levels"],
    }


def write(directory: Path, report: dict[str, Any], bounds: Sequence[Bound], timesteps: list[int]) -> None:
    """Write likelihood.json (the summary, each timestep's term, the curve) and rate_distortion.png."""
    terms = torch.cat([bound.terms for bound in bounds]).mean(dim=0).tolist()
    curve = rate_distortion(bounds)
    for point in curve:
        point["timestep"] = timesteps[int(point.pop("position"))]
    full = {
        **report,
        "terms": [{"timestep": t, "bits_per_dim": term} for t, term in zip(timesteps, terms, strict=True)],
        "rate_distortion": curve,
    }
    (directory / "likelihood.json").write_text(json.dumps(full, indent=2) + "\n")
    plot_rate_distortion(curve, directory / "rate_distortion.png")


def plot_rate_distortion(curve: Sequence[dict[str, float]], file: Path) -> None:
    """Distortion against rate, as figure 5 of the paper draws it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([point["rate_bits_per_dim"] for point in curve], [point["rmse_levels"] for point in curve])
    axes.set_xlabel("rate (bits/dim)")
    axes.set_ylabel("distortion (RMSE in levels of 0 to 255)")
    figure.savefig(file, dpi=120)
