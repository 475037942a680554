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
from typing import Any, Literal

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

Metric = Literal["frechet_distance", "kernel_distance", "inception_score", "precision_recall", "bits_per_dim"]
SAMPLERS = {"ddpm": "ddpm", "ddim": "ddim", "dpm-solver++": "dpmsolver"}
"""Name of `models.samplers` -> how it is spelled in a protocol's name (MLflow takes no + in a metric)."""
_SPELLED = {512: "512", 1000: "1k", 2000: "2k", 5000: "5k", 10000: "10k", 50000: "50k"}


@dataclass(frozen=True)
class Extractor:
    """A feature network and how images reach it. `resize` names the one rule that `eval.features` implements."""

    network: str
    sha256: str
    resize: str


EXTRACTORS = {
    "efficientnet_lite0": Extractor("efficientnet_lite0", EFFICIENTNET_LITE0_SHA256, "bicubic_96_128_224"),
    "clean": Extractor("inception", INCEPTION_SHA256, "clean"),
    "tf": Extractor("inception", INCEPTION_SHA256, "legacy_tensorflow"),
}
NO_EXTRACTOR = Extractor("none", "none", "none")
_LEAST_SAMPLES = {"inception_score": 10, "precision_recall": 4}
"""An Inception Score has 10 splits, precision and recall look at 3 neighbours; every other metric needs 2 images."""
_VERSIONS = {"inception_score": 2}
"""Of metrics whose number a change of code has changed: 2 splits the images as the published code does."""


@dataclass(frozen=True)
class Protocol:
    """A quality number's definition. Two numbers may share a curve or a column only if their digests are equal."""

    metric: Metric
    """What is computed."""
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
        self._check_extractor()
        least = _LEAST_SAMPLES.get(self.metric, 2)
        if self.num_samples < least:
            raise ValueError(f"num_samples={self.num_samples}: {self.metric} needs at least {least} images")
        # numpy.random.seed, by which clean-fid draws a kernel distance's subsets, takes 32 bits.
        if self.seed < 0 or (self.metric == "kernel_distance" and self.seed >= 2**32):
            raise ValueError(f"seed={self.seed}: allowed is 0 or more, below 2^32 for a kernel distance")
        if self.reference == "npz" and self.metric != "frechet_distance":
            raise ValueError(f"reference=npz: {self.metric} needs the features of single images, an npz has none")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={self.precision!r}: allowed are float32, bfloat16")
        self._check_sampler()

    def _check_extractor(self) -> None:
        found = (self.extractor, self.resize)
        pairs = [(known.network, known.resize) for known in EXTRACTORS.values()]
        allowed = pairs if self.needs_samples else [(NO_EXTRACTOR.network, NO_EXTRACTOR.resize)]
        if found not in allowed:
            spelled = ", ".join("+".join(pair) for pair in allowed)
            raise ValueError(f"extractor+resize={'+'.join(found)}: allowed for {self.metric} are {spelled}")
        if self.needs_samples and not re.fullmatch("[0-9a-f]{64}", self.extractor_sha256):
            raise ValueError(f"extractor_sha256={self.extractor_sha256!r}: 64 hexadecimal digits are needed")

    def _check_sampler(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r}: allowed are {', '.join(SAMPLERS)}")
        if self.num_sampling_steps is not None and self.num_sampling_steps < 1:
            raise ValueError(f"num_sampling_steps={self.num_sampling_steps}: give at least 1, or none for all steps")
        if not self.needs_samples and (self.sampler, self.num_sampling_steps) != ("ddpm", None):
            raise ValueError(f"sampler={self.sampler} with {self.metric}: it needs no sampler, leave it out")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: allowed is 0 (deterministic) to 1 (ancestral)")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta={self.eta} with sampler={self.sampler}: eta belongs to the ddim sampler")

    @property
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
        if self.metric == "bits_per_dim":
            return "bits_per_dim"
        mode = {"clean": "clean", "legacy_tensorflow": "tf"}.get(self.resize)
        published = self.extractor_sha256 == _PUBLISHED_SHA256[self.extractor]
        if mode and published:
            return f"{_FID_FAMILIES[self.metric]}_{mode}"
        network = self.extractor if published else f"{self.extractor}_{self.extractor_sha256[:8]}"
        return f"{_OTHER_FAMILIES[self.metric]}_{network}" + (f"_{mode}" if mode else "")

    @property
    def name(self) -> str:
        """Metric name in MLflow (`eval/<name>`), file names and reports. Spells every departure from the default."""
        parts = [self.family, _spell_count(self.num_samples)]
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
        return self.metric in ("frechet_distance", "kernel_distance", "bits_per_dim")

    @property
    def needs_samples(self) -> bool:
        """False for bits_per_dim, which scores images of the data set."""
        return self.metric != "bits_per_dim"

    def bind(self, manifest_digest: str) -> "Protocol":
        """The protocol for one data set: the same settings with the reference's digest filled in."""
        return self if self.reference == "npz" else replace(self, reference_digest=manifest_digest)

    def describe(self) -> dict[str, Any]:
        """Every field with the name and digest, for results and reports."""
        return {"name": self.name, "digest": self.digest, **asdict(self)}


_PUBLISHED_SHA256 = {known.network: known.sha256 for known in EXTRACTORS.values()}
_FID_FAMILIES = {
    "frechet_distance": "fid",
    "kernel_distance": "kid",
    "inception_score": "is",
    "precision_recall": "pr",
}
_OTHER_FAMILIES = {**_FID_FAMILIES, "frechet_distance": "fd", "kernel_distance": "kd"}


def _spell_count(count: int) -> str:
    return _SPELLED.get(count, str(count))


def _families() -> dict[str, tuple[Metric, Extractor]]:
    """Family name -> (metric, extractor)."""
    families: dict[str, tuple[Metric, Extractor]] = {"bits_per_dim": ("bits_per_dim", NO_EXTRACTOR)}
    for extractor_name, extractor in EXTRACTORS.items():
        names = _FID_FAMILIES if extractor.network == "inception" else _OTHER_FAMILIES
        for metric, prefix in names.items():
            families[f"{prefix}_{extractor_name}"] = (metric, extractor)  # type: ignore[assignment]
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
                extractor.network,
                extractor.sha256,
                extractor.resize,
                num_samples=int(count.removesuffix("k")) * (1000 if count.endswith("k") else 1),
                sampler=_SAMPLER_NAMES[found["sampler"] or "ddpm"],
                num_sampling_steps=int(found["num_sampling_steps"]) if found["num_sampling_steps"] else None,
                eta=float(found["eta"] or 0),
                seed=int(found["seed"] or 0),
                precision="bfloat16" if found["precision"] else "float32",
                compiled=bool(found["compiled"]),
                reference="npz" if found["npz"] else "train",
                reference_digest=found["npz"],
                version=_VERSIONS.get(metric, 1),
            )
    raise ValueError(
        f"protocol {name!r} is unknown; write FAMILY_N with a family of {', '.join(FAMILIES)}, "
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
