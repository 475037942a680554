"""Protocols: everything that defines a quality number, named, and digested so that unlike numbers are never compared.

A name reads `<family>_<num_samples>[_<sampler><steps>][_eta<eta>][_seed<seed>][_bf16][_compiled][_npz<digest>]`,
such as `fid_clean_50k` or `fd_efficientnet_lite0_512_ddim50`; `parse_protocol` reads it back. Only what differs from
the default appears in it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from common.checks import check_choice, check_number, check_whole, did_you_mean
from eval.metrics.extractor import EXTRACTORS, Extractor, find_extractor
from eval.metrics.metric import METRICS, Metric

SAMPLERS = {"ddpm": "ddpm", "ddim": "ddim", "dpm-solver++": "dpmsolver"}
"""Name of `models.samplers` -> how it is spelled in a protocol's name (MLflow takes no + in a metric)."""
_SPELLED = {512: "512", 1000: "1k", 2000: "2k", 5000: "5k", 10000: "10k", 50000: "50k"}
_NO_EXTRACTOR = "none"
_MAX_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Protocol:
    """A quality number's definition. Two numbers may share a curve or a column only if their digests are equal."""

    metric: str
    """What is computed: a name in `METRICS`."""
    extractor: str
    """Feature network: inception, efficientnet_lite0 or none."""
    extractor_sha256: str
    """sha256 of the network's weights file."""
    resize: str
    """How uint8 images reach the network: clean, legacy_tensorflow, bicubic_96_128_224 or none."""
    num_samples: int
    """Number of images N: sampled ones, or, for bits_per_dim, scored ones. A Fréchet distance depends on it."""
    sampler: str = "ddpm"
    """ddpm (ancestral, Algorithm 2 of Ho et al. 2020), ddim or dpm-solver++."""
    num_sampling_steps: int | None = None
    """Network evaluations per image; None: every step the model was trained with."""
    eta: float = 0.0
    """Noise of the ddim sampler: 0 deterministic, 1 as much as ancestral sampling."""
    seed: int = 0
    """Image i is a function of (seed, i)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of sampling network and extractor. bfloat16 is faster, moves the number, and so makes another protocol."""
    reference: str = "train"
    """The images compared with: train (every image of the run's data set, unflipped) or npz (imported statistics)."""
    reference_digest: str | None = None
    """Digest of the reference: the data set's manifest, or 16 digits of the npz file's sha256. None until `bind`."""
    compiled: bool = False
    """Sampling network compiled by torch.compile. Faster, moves the last bits of images, and so is another protocol."""
    version: int = 1
    """Raised whenever a change of code changes the number."""

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)
        metric = METRICS[self.metric]
        self._check_extractor()
        needed = f"{self.metric} needs {metric.min_images}"
        check_whole("num_samples", self.num_samples, metric.min_images, _MAX_SAMPLES, hint=needed)
        check_whole("seed", self.seed, 0, None if metric.seed_end is None else metric.seed_end - 1)
        if self.reference == "npz" and not metric.uses_statistics:
            raise ValueError(f"reference=npz: {self.metric} needs the features of single images, an npz has none")
        check_choice("precision", self.precision, ("float32", "bfloat16"))
        self._check_sampler()

    def _check_extractor(self) -> None:
        found = f"{self.extractor}+{self.resize}"
        allowed = [f"{known.network}+{known.resize}" for known in EXTRACTORS.values()]
        if not self.needs_samples:
            allowed = [f"{_NO_EXTRACTOR}+{_NO_EXTRACTOR}"]
        if found not in allowed:
            raise ValueError(f"extractor+resize={found}: allowed for {self.metric} are {', '.join(allowed)}")
        if self.needs_samples and not re.fullmatch("[0-9a-f]{64}", self.extractor_sha256):
            raise ValueError(f"extractor_sha256={self.extractor_sha256!r}: 64 hexadecimal digits are needed")

    def _check_sampler(self) -> None:
        check_choice("sampler", self.sampler, SAMPLERS)
        if self.num_sampling_steps is not None:
            check_whole("num_sampling_steps", self.num_sampling_steps, 1, hint="leave it out for all steps")
        if not self.needs_samples and (self.sampler, self.num_sampling_steps) != ("ddpm", None):
            raise ValueError(f"sampler={self.sampler} with {self.metric}: it needs no sampler, leave it out")
        check_number("eta", self.eta, least=0, most=1, hint="0 is deterministic, 1 ancestral")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta} with sampler={self.sampler}: eta belongs to the ddim sampler")

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of all fields; of a later field only where it is set."""
        described = asdict(self)
        if not self.compiled:
            del described["compiled"]  # the digests of numbers made before this field was there stay theirs
        canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def family(self) -> str:
        """The name without numbers: what is measured through which network. FID means the published Inception only."""
        metric = METRICS[self.metric]
        if not self.needs_samples:
            return metric.prefix
        name = find_extractor(self.extractor, self.resize)
        extractor = EXTRACTORS[name]
        if self.extractor_sha256 == extractor.sha256:
            return f"{_prefix(metric, extractor)}_{name}"
        mode = "" if name == extractor.network else f"_{name}"
        return f"{metric.prefix}_{extractor.network}_{self.extractor_sha256[:8]}{mode}"

    @property
    def name(self) -> str:
        """Metric name in MLflow (`eval/<name>`), file names and reports. Spells every departure from the default."""
        parts = [self.family, _SPELLED.get(self.num_samples, str(self.num_samples))]
        if (self.sampler, self.num_sampling_steps) != ("ddpm", None):
            parts.append(f"{SAMPLERS[self.sampler]}{self.num_sampling_steps or ''}")
        if self.eta:
            parts.append(f"eta{self.eta!r}".removesuffix(".0"))
        if self.seed:
            parts.append(f"seed{self.seed}")
        if self.precision == "bfloat16":
            parts.append("bf16")
        if self.compiled:
            parts.append("compiled")
        if self.reference == "npz":
            parts.append(f"npz{self.reference_digest}")
        return "_".join(parts)

    @property
    def lower_is_better(self) -> bool:
        return METRICS[self.metric].lower_is_better

    @property
    def needs_samples(self) -> bool:
        """False where images of the data set are scored."""
        return METRICS[self.metric].looks_at != "data"

    def bind(self, manifest_digest: str) -> "Protocol":
        """The protocol for one data set: the same settings with the reference's digest filled in."""
        return self if self.reference == "npz" else replace(self, reference_digest=manifest_digest)

    def describe(self) -> dict[str, Any]:
        """Every field with the name and digest, for results and reports."""
        return {"name": self.name, "digest": self.digest, **asdict(self)}


def _prefix(metric: Metric, extractor: Extractor) -> str:
    """With the published weights: FID means the published Inception only."""
    return metric.published_prefix if extractor.gives_fid and metric.published_prefix else metric.prefix


def _families() -> dict[str, tuple[str, Extractor | None]]:
    """Family name -> (metric, extractor if it needs one)."""
    families: dict[str, tuple[str, Extractor | None]] = {
        metric.prefix: (name, None) for name, metric in METRICS.items() if metric.looks_at == "data"
    }
    for extractor_name, extractor in EXTRACTORS.items():
        for name, metric in METRICS.items():
            if metric.looks_at != "data":
                families[f"{_prefix(metric, extractor)}_{extractor_name}"] = (name, extractor)
    return families


FAMILIES = _families()
NAMES = tuple(f"{family}_{count}" for family in FAMILIES for count in _SPELLED.values())
"""The ready-made protocols; any other number of samples, sampler or seed makes its own name."""

_SUFFIX = re.compile(
    rf"(?:_(?P<sampler>{'|'.join(SAMPLERS.values())})(?P<num_sampling_steps>\d+)?)?(?:_eta(?P<eta>[\d.]+(?:e-\d+)?))?"
    r"(?:_seed(?P<seed>\d+))?(?P<precision>_bf16)?(?P<compiled>_compiled)?(?:_npz(?P<npz>[0-9a-f]{16}))?"
)
_SAMPLER_NAMES = {spelled: sampler for sampler, spelled in SAMPLERS.items()}
_FIXED = ("metric", "version", "reference", "reference_digest")
_OVERRIDES = {field.name: field for field in fields(Protocol) if field.name not in _FIXED}


def parse_protocol(text: str) -> Protocol:
    """The protocol of a name, optionally followed by settings: `fid_clean_10k`, `fd_efficientnet_lite0_512_ddim50`,
    `fd_efficientnet_lite0_512:sampler=ddim,num_sampling_steps=50`.

    Raises ValueError naming what is not understood and what is allowed.
    """
    name, _, settings = text.partition(":")
    protocol = _from_name(name)
    overrides = {}
    for setting in filter(None, settings.split(",")):
        key, separator, value = (part.strip() for part in setting.partition("="))
        if not separator or key not in _OVERRIDES:
            allowed = ", ".join(_OVERRIDES)
            raise ValueError(f"protocol setting {setting!r} in {text!r}: write key=value with one of {allowed}")
        overrides[key] = _convert(key, value)
    return replace(protocol, **overrides)


def _from_name(name: str) -> Protocol:
    for family in sorted(FAMILIES, key=len, reverse=True):
        match = re.fullmatch(rf"{family}_(?P<count>\d+k?){_SUFFIX.pattern}", name)
        if match:
            metric, extractor = FAMILIES[family]
            found = match.groupdict()
            count = found["count"]
            return Protocol(
                metric,
                extractor.network if extractor else _NO_EXTRACTOR,
                extractor.sha256 if extractor else _NO_EXTRACTOR,
                extractor.resize if extractor else _NO_EXTRACTOR,
                num_samples=int(count.removesuffix("k")) * (1000 if count.endswith("k") else 1),
                sampler=_SAMPLER_NAMES[found["sampler"] or "ddpm"],
                num_sampling_steps=int(found["num_sampling_steps"]) if found["num_sampling_steps"] else None,
                eta=float(found["eta"] or 0),
                seed=int(found["seed"] or 0),
                precision="bfloat16" if found["precision"] else "float32",
                compiled=bool(found["compiled"]),
                reference="npz" if found["npz"] else "train",
                reference_digest=found["npz"],
                version=METRICS[metric].version,
            )
    near = did_you_mean(re.split(r"_\d", name)[0], FAMILIES)
    raise ValueError(
        f"protocol {name!r} is unknown{near}; write FAMILY_N with a family of {', '.join(FAMILIES)}, "
        "for example fid_clean_50k, fd_efficientnet_lite0_5k or fd_efficientnet_lite0_512_ddim50"
    )


def _convert(key: str, value: str) -> Any:
    try:
        if key in ("num_samples", "seed"):
            return int(value)
        if key == "num_sampling_steps":
            return None if value.lower() in ("none", "all") else int(value)
        if key == "compiled":
            return {"true": True, "false": False}[value.lower()]
        return float(value) if key == "eta" else value
    except (ValueError, KeyError):
        wanted = "true or false" if key == "compiled" else "a number"
        raise ValueError(f"protocol setting {key}={value!r}: {wanted} is needed") from None


def from_description(description: Mapping[str, Any]) -> Protocol:
    """The protocol whose `describe()` this is, as read from a result file."""
    return Protocol(**{field.name: description[field.name] for field in fields(Protocol) if field.name in description})
