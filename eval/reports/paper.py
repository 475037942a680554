"""The paper's table: published numbers beside this run's, with every difference in protocol spelled out.

Published numbers: Ho et al. 2020, Tables 1 and 3 and Sec. 4; the protocol is that of App. B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics.metric import METRICS
from eval.reports.report_data import collect_run


@dataclass(frozen=True)
class Published:
    """One number of the paper."""

    data: str
    metric: str
    """Metric of our protocols it corresponds to."""
    quantity: str
    value: str
    image_size: int
    extractor: str
    """What measured it."""
    reference: str = "train"


PUBLISHED = (
    Published("CIFAR-10", "frechet_distance", "FID (train)", "3.17", 32, "TTUR Inception"),
    Published("CIFAR-10", "frechet_distance", "FID (test)", "5.24", 32, "TTUR Inception", "test"),
    Published("CIFAR-10", "inception_score", "Inception Score", "9.46 ± 0.11", 32, "OpenAI Inception"),
    Published("CIFAR-10", "bits_per_dim", "bits/dim (test)", "≤ 3.75", 32, "none", "test"),
    Published("CIFAR-10", "bits_per_dim", "bits/dim (train)", "≤ 3.72", 32, "none"),
    Published("LSUN Bedroom", "frechet_distance", "FID", "6.36", 256, "StyleGAN2 Inception"),
    Published("LSUN Bedroom, large model", "frechet_distance", "FID", "4.90", 256, "StyleGAN2 Inception"),
    Published("LSUN Church", "frechet_distance", "FID", "7.89", 256, "StyleGAN2 Inception"),
    Published("LSUN Cat", "frechet_distance", "FID", "19.75", 256, "StyleGAN2 Inception"),
)
PAPER_SAMPLES = 50_000
PAPER_STEPS = 1000


def paper_table(run_directory: Path, image_size: int | None = None) -> str:
    """The table as text: published rows of this run's image size (all, if it has none there), then the run's own.

    Under each of the run's numbers stands how its protocol differs from the paper's. image_size: for tests.
    """
    run = collect_run(run_directory)
    size = image_size or run["config"].get("model.image_size")
    num_timesteps = run["config"].get("diffusion.num_timesteps")
    published = [row for row in PUBLISHED if row.image_size == size] or list(PUBLISHED)
    lines = [f"{'data':<28}{'quantity':<28}{'value':>14}   measured by"]
    for row in published:
        lines.append(f"{row.data:<28}{row.quantity:<28}{row.value:>14}   {row.extractor}, N = {PAPER_SAMPLES:,}")
    lines.append("")
    best = best_results(run["evaluations"])
    if not best:
        lines.append(
            f"{run['name']}: nothing is evaluated yet; python -m eval run {run_directory} --protocol fid_tf_50k"
        )
    for result in best:
        number = format_number(result["value"])
        lines.append(f"{run['name']:<28}{result['protocol']['name']:<28}{number:>14}   step {result['step']:,}")
        lines += [f"    differs: {difference}" for difference in differences(result, size, num_timesteps)]
    return "\n".join(lines)


def format_number(value: float) -> str:
    """Two decimals as in the paper; three digits of what is smaller, such as a KID."""
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def best_results(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best number under each protocol: the paper reports the minimum over training (App. B)."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in evaluations:
        digest = result["protocol"]["digest"]
        sign = 1 if METRICS[result["protocol"]["metric"]].lower_is_better else -1
        if digest not in found or sign * result["value"] < sign * found[digest]["value"]:
            found[digest] = result
    return list(found.values())


def differences(result: Mapping[str, Any], image_size: int | None, num_timesteps: int | None = None) -> list[str]:
    """How the protocol of a result differs from the paper's, in words; empty only if it could be compared as it is.

    num_timesteps: T of the run, what a protocol that samples with all steps takes.
    """
    protocol, found = result["protocol"], []
    metric = METRICS[protocol["metric"]]
    sampled = metric.looks_at != "data"
    if sampled and protocol["extractor"] != "inception":
        found.append(f"features of {protocol['extractor']}, not of Inception: the scales have nothing in common")
    elif protocol["resize"] == "clean":
        found.append("clean-fid's resizing; the paper's code resized inside the network (protocol fid_tf_50k)")
    if metric.paper_lacks:
        found.append(f"the paper gives no {metric.paper_lacks}")
    if sampled and protocol["num_samples"] != PAPER_SAMPLES:
        fewer = protocol["num_samples"] < PAPER_SAMPLES and metric.few_images_effect
        effect = f"; {metric.few_images_effect}" if fewer else ""
        found.append(f"{protocol['num_samples']:,} samples, the paper took {PAPER_SAMPLES:,}{effect}")
    num_steps = protocol["num_sampling_steps"] or num_timesteps or PAPER_STEPS
    if sampled and (protocol["sampler"], num_steps) != ("ddpm", PAPER_STEPS):
        found.append(
            f"{protocol['sampler']} with {num_steps} steps, the paper sampled with all {PAPER_STEPS} of Algorithm 2"
        )
    elif not sampled and num_steps != PAPER_STEPS:
        found.append(f"a bound of {num_steps} terms, the paper's has {PAPER_STEPS}")
    if protocol["precision"] != "float32":
        found.append(f"computed in {protocol['precision']}")
    if protocol.get("compiled"):
        found.append("sampled by a compiled network")
    if sampled and image_size not in (32, 256):
        found.append(f"images of {image_size} px; the paper's are 32 and 256 px")
    if not sampled:
        found.append(f"{protocol['num_samples']:,} training images, one draw of noise for each term")
    share = result.get("initial_weight_share")
    if share is not None and share > 0.01:
        found.append(f"{100 * share:.0f} % of the averaged weights are still the initialisation")
    found.append(f"the run's own data set, digest {str(protocol['reference_digest'])[:12]}")
    return found
