"""What a model and its diffusion are: two frozen dataclasses, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

if TYPE_CHECKING:
    from torch import nn

NUM_GROUPS = 32
"""Groups of every GroupNorm (authors' code, nn defaults): all widths must be multiples of it."""


@dataclass(frozen=True)
class ModelConfig:
    """The network that predicts the noise. Defaults: the paper's CIFAR-10 model, 35,746,307 parameters.

    Raises ValueError, naming the value and what is allowed, if the network could not be built.
    """

    architecture: Literal["ddpm", "annotated"] = "ddpm"
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
        _check_choice(self, "architecture")
        for name in ("channel_multipliers", "attention_resolutions"):
            object.__setattr__(self, name, _integers(name, getattr(self, name)))
        for name in ("image_size", "image_channels", "base_channels", "num_res_blocks"):
            _check_positive_integer(name, getattr(self, name))
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers is empty: give one multiplier for each level, such as 1,2,2,2")
        _check_number("dropout", self.dropout)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}: it must lie in [0, 1); 0 turns it off")
        self._check_widths()
        self._check_resolutions()

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Width of each level in channels, finest first."""
        widths = []
        cumulative = self.base_channels
        for multiplier in self.channel_multipliers:
            cumulative *= multiplier
            widths.append(cumulative if self.architecture == "annotated" else self.base_channels * multiplier)
        return tuple(widths)

    @property
    def level_resolutions(self) -> tuple[int, ...]:
        """Height and width of each level's feature maps in pixels, finest first."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_multipliers)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.image_channels, self.image_size, self.image_size)

    def _check_widths(self) -> None:
        for width in (self.base_channels, *self.level_channels):
            if width % NUM_GROUPS:
                raise ValueError(
                    f"base_channels {self.base_channels} with channel_multipliers {self.channel_multipliers} gives "
                    f"a level of {width} channels: GroupNorm has {NUM_GROUPS} groups, so every width must be a "
                    f"multiple of {NUM_GROUPS}; choose base_channels = {NUM_GROUPS}, {2 * NUM_GROUPS}, ..."
                )

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
    schedule: Literal["linear", "cosine"] = "linear"
    """linear: betas from beta_start to beta_end (the paper); cosine: improved DDPM, ignores both."""
    beta_start: float = 1e-4
    """First beta of the linear schedule."""
    beta_end: float = 0.02
    """Last beta of the linear schedule."""
    variance: Literal["fixedlarge", "fixedsmall"] = "fixedlarge"
    """Variance of the reverse step: beta_t (paper, CIFAR-10) or the posterior's (paper, 256 pixels)."""

    def __post_init__(self) -> None:
        _check_choice(self, "schedule")
        _check_choice(self, "variance")
        _check_positive_integer("num_timesteps", self.num_timesteps)
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps is {self.num_timesteps}: it must be at least 2; the paper uses 1000")
        for name in ("beta_start", "beta_end"):
            _check_number(name, getattr(self, name))
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie strictly between 0 and 1")
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}: betas must not fall")


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network with fresh weights drawn from torch's global generator.

    Its forward takes x_t: (B, C, H, W) float and t: (B,) int64 in [0, T) and returns the predicted noise,
    (B, C, H, W) in x_t's dtype.
    """
    if config.architecture == "annotated":
        from models.annotated_unet import AnnotatedUNet

        return AnnotatedUNet(config)
    from models.unet import UNet

    return UNet(config)


def _check_choice(config: object, name: str) -> None:
    allowed = get_args(get_type_hints(type(config))[name])
    if getattr(config, name) not in allowed:
        raise ValueError(f"{name} is {getattr(config, name)!r}: choose one of {', '.join(allowed)}")


def _check_positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}: it must be a number")


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {values!r}: it must be a list of whole numbers")
    for value in values:
        _check_positive_integer(f"a value of {name}", value)
    return tuple(values)
