"""Who is drawn: the random traits of one face, and the palettes they come from."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from data_pipeline.demo.painter import Color, mixed

_SKINS: tuple[Color, ...] = (
    (255, 226, 204),
    (247, 208, 178),
    (234, 188, 150),
    (212, 160, 118),
    (174, 118, 80),
    (130, 84, 56),
    (92, 58, 40),
)
_HAIRS: tuple[Color, ...] = (
    (26, 22, 22),
    (54, 36, 26),
    (92, 60, 36),
    (140, 92, 48),
    (186, 134, 70),
    (226, 194, 124),
    (156, 66, 32),
    (158, 156, 158),
)
_IRISES: tuple[Color, ...] = ((74, 46, 28), (110, 70, 38), (62, 104, 78), (70, 116, 156), (112, 122, 132))
_CLOTHES: tuple[Color, ...] = (
    (40, 60, 104),
    (134, 40, 50),
    (50, 92, 72),
    (92, 92, 98),
    (232, 228, 218),
    (32, 32, 36),
    (194, 144, 62),
    (122, 82, 134),
)


@dataclass(frozen=True)
class Traits:
    """One person in one photograph; lengths in the painter's coordinates."""

    skin: Color
    hair: Color
    iris: Color
    clothes: Color
    style: str
    is_feminine: bool
    head_width: float
    jaw: float
    chin: float
    eye_gap: float
    eye_size: float
    eye_opening: float
    brow_height: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_width: float
    smile: float
    mouth_opening: float
    hairline: float
    parting: float
    beard: str
    glasses: str
    yaw: float
    light: float
    warmth: float

    def shadow(self, share: float = 0.35) -> Color:
        return mixed(self.skin, (70, 24, 20), share)


def random_traits(random: np.random.Generator) -> Traits:
    """The traits of one face; the order of the draws is part of what a seed means."""
    skin = int(random.integers(len(_SKINS)))
    is_feminine = bool(random.random() < 0.5)
    dark_hair = random.random() < 0.25 + 0.12 * skin
    hair = int(random.integers(3)) if dark_hair else int(random.integers(len(_HAIRS)))
    masculine_styles = ("short", "short", "side", "curly", "fringe", "bald")
    feminine_styles = ("long", "long", "bob", "curly", "bun", "fringe", "side")

    jitter, tinted = partial(_jitter, random), partial(_tinted, random)
    return Traits(
        skin=tinted(mixed(_SKINS[skin], _SKINS[min(skin + 1, len(_SKINS) - 1)], float(random.random()))),
        hair=tinted(_HAIRS[hair]),
        iris=_IRISES[0] if skin > 3 else _IRISES[int(random.integers(len(_IRISES)))],
        clothes=tinted(_CLOTHES[int(random.integers(len(_CLOTHES)))]),
        style=str(random.choice(feminine_styles if is_feminine else masculine_styles)),
        is_feminine=is_feminine,
        head_width=jitter(0.43 if is_feminine else 0.45, 0.015),
        jaw=jitter(0.42 if is_feminine else 0.28, 0.05),
        chin=jitter(0.60 if is_feminine else 0.63, 0.015),
        eye_gap=jitter(0.185, 0.009),
        eye_size=jitter(0.092 if is_feminine else 0.085, 0.005),
        eye_opening=jitter(0.48 if is_feminine else 0.42, 0.05),
        brow_height=jitter(0.125, 0.012),
        brow_tilt=jitter(-0.006, 0.01),
        nose_length=jitter(0.235, 0.02),
        nose_width=jitter(0.075 if is_feminine else 0.088, 0.01),
        mouth_width=jitter(0.16, 0.016),
        smile=jitter(0.022, 0.018),
        mouth_opening=float(random.uniform(0.02, 0.05)) if random.random() < 0.4 else 0.0,
        hairline=jitter(-0.40, 0.03),
        parting=float(random.uniform(-0.22, 0.22)),
        beard="none" if is_feminine else str(random.choice(["none", "none", "stubble", "full", "moustache"])),
        glasses=str(random.choice(["none"] * 7 + ["round", "square", "sun"])),
        yaw=jitter(0.0, 0.05),
        light=jitter(0.0, 0.5),
        warmth=jitter(0.02, 0.03),
    )


def _jitter(random: np.random.Generator, mean: float, spread: float) -> float:
    return float(np.clip(random.normal(mean, spread), mean - 2 * spread, mean + 2 * spread))


def _tinted(random: np.random.Generator, color: Color) -> Color:
    lighter = random.normal(0, 7)
    red, green, blue = (int(np.clip(value + lighter + random.normal(0, 2.5), 0, 255)) for value in color)
    return (red, green, blue)
