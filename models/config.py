"""What a model and its diffusion are: two frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from common.checks import check, check_choice, check_number, check_whole

NUM_GROUPS = 32
"""Groups of every GroupNorm (authors' code, nn defaults): all widths must be multiples of it."""
LARGEST = {"image_size": 2**16, "image_channels": 2**16, "base_channels": 2**16, "num_res_blocks": 100}
"""Far beyond what anybody trains, so that a damaged file cannot make a program build without end."""
MAX_MULTIPLIER = 2**16
MAX_TIMESTEPS = 100_000
MAX_LOG_NOISE = 170.0
"""Largest -log(alphas_cumprod) at the end: beyond it sqrt(1 / alphas_cumprod) leaves float32."""
MIN_BETA = 1e-8
"""Smaller betas lose their digits in 1 - beta."""
Schedule = Literal["linear", "cosine"]
Variance = Literal["fixedlarge", "fixedsmall"]


@dataclass(frozen=True)
class ModelConfig:
    """The network that predicts the noise. Defaults: the paper's CIFAR-10 model, 35,746,307 parameters.

    Raises ValueError, naming the value and what is allowed, if the network could not be built.
    """

    architecture: str = "ddpm"
    """ddpm: the U-Net of Ho et al. 2020; annotated: the variant of the labml.ai annotated tutorial."""
    image_size: int = 32
    """Height and width of the images in pixels; divisible by 2 to the number of downsamplings."""
    image_channels: int = 3
    """Channels of the images: 3 for RGB, 1 for grey."""
    base_channels: int = 128
    """Width of the first convolution; the time embedding is four times as wide."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, finest first: absolute multiples of base_channels (annotated: cumulative)."""
    num_res_blocks: int = 2
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Feature map sizes in pixels at which a self-attention block follows every residual block."""
    dropout: float = 0.1
    """Dropout rate inside the residual blocks, in [0, 1); the paper uses 0 at 256 pixels."""
    gradient_checkpointing: bool = False
    """Recompute each residual block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        check(isinstance(self.architecture, str), "architecture", self.architecture, "a name, such as ddpm")
        for name in ("channel_multipliers", "attention_resolutions"):
            object.__setattr__(self, name, _integers(name, getattr(self, name)))
        for name, most in LARGEST.items():
            check_whole(name, getattr(self, name), 1, most)
        check(len(self.channel_multipliers) > 0, "channel_multipliers", (), "one number for each level, such as 1,2,2")
        check_number("dropout", self.dropout, least=0, below=1, hint="0 turns it off")
        recomputes = self.gradient_checkpointing
        check(isinstance(recomputes, bool), "gradient_checkpointing", recomputes, "true or false")
        # Enough for every network's norms, since all widths are multiples of the base.
        groups = f"a multiple of {NUM_GROUPS}, the groups of each GroupNorm"
        check(self.base_channels % NUM_GROUPS == 0, "base_channels", self.base_channels, groups)
        self._check_resolutions()

    @property
    def level_resolutions(self) -> tuple[int, ...]:
        """Height and width of each level's feature maps in pixels, finest first."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_multipliers)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.image_channels, self.image_size, self.image_size)

    def _check_resolutions(self) -> None:
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if self.image_size % factor:
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {len(self.channel_multipliers) - 1} times: "
                f"with {len(self.channel_multipliers)} channel_multipliers it must be a multiple of {factor}"
            )
        for resolution in self.attention_resolutions:
            if resolution not in self.level_resolutions:
                allowed = ", ".join(str(size) for size in self.level_resolutions)
                raise ValueError(
                    f"attention_resolutions has {resolution}, which never occurs in this network: with image_size "
                    f"{self.image_size} its levels are {allowed}; choose from those or leave it empty"
                )


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and the variance of the reverse process. Defaults: the paper's CIFAR-10 run."""

    num_timesteps: int = 1000
    """Number of diffusion steps T; timesteps are 0 ... T-1."""
    schedule: Schedule = "linear"
    """linear: betas from beta_start to beta_end (the paper); cosine: improved DDPM, ignores both."""
    beta_start: float = 1e-4
    """First beta of the linear schedule."""
    beta_end: float = 0.02
    """Last beta of the linear schedule."""
    variance: Variance = "fixedlarge"
    """Variance of the reverse step: beta_t (paper, CIFAR-10) or the posterior's (paper, 256 pixels)."""

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("variance", self.variance, get_args(Variance))
        check_whole("num_timesteps", self.num_timesteps, 2, MAX_TIMESTEPS, "the paper uses 1000")
        for name in ("beta_start", "beta_end"):
            check_number(name, getattr(self, name), least=MIN_BETA, below=1)
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}: betas must not fall")
        if self.schedule == "linear":
            self._check_noise()

    def _check_noise(self) -> None:
        """What is left of the image at the end must still be a number."""
        slope = (self.beta_end - self.beta_start) / (self.num_timesteps - 1)
        log_noise = -sum(math.log1p(-self.beta_start - slope * t) for t in range(self.num_timesteps))
        if log_noise > MAX_LOG_NOISE:
            raise ValueError(
                f"num_timesteps {self.num_timesteps} with betas from {self.beta_start} to {self.beta_end} leaves "
                f"exp(-{log_noise:.0f}) of an image's variance at the end, which float32 cannot hold: "
                "take fewer timesteps or a smaller beta_end; the paper's 1000 from 0.0001 to 0.02 leave exp(-10)"
            )


def _integers(name: str, values: object) -> tuple[int, ...]:
    numbers = tuple(values) if isinstance(values, list | tuple) else None
    check(numbers is not None, name, values, "a list of whole numbers")
    for value in numbers or ():
        check_whole(f"a value of {name}", value, 1, MAX_MULTIPLIER)
    return numbers or ()
