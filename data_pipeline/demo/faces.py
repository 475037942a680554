"""Procedurally drawn faces: a built-in set of RGB portraits with the variety of a real one, free of licences.

Face i of seed s is a function of (s, i) alone. The proportions are those of an aligned portrait set: eyes a little
above the middle, the head filling most of the picture, shoulders below.
"""

import numpy as np

from common.checks import check_whole
from data_pipeline.demo.face_features import draw_eye, draw_glasses, draw_mouth, draw_nose
from data_pipeline.demo.face_hair import draw_back_hair, draw_beard, draw_front_hair
from data_pipeline.demo.face_traits import Traits, random_traits
from data_pipeline.demo.painter import Painter, Point, ellipse, mixed, smooth

MAX_SIZE = 256


def draw_face(seed: int, index: int, size: int) -> np.ndarray:
    """Face `index` of `seed`: (size, size, 3) uint8, size in [8, 256]. ValueError."""
    check_whole("image_size", size, 8, MAX_SIZE, hint="faces have no other sizes")
    check_whole("seed", seed, 0)
    check_whole("index", index, 0)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    traits = random_traits(random)
    roll, scale = float(random.normal(0, 0.05)), float(random.uniform(1.1, 1.26))
    shift = (float(random.normal(0, 0.03)), float(random.normal(0.07, 0.02)))
    painter = Painter(size, roll, scale, shift)
    painter.fill(_background(random))
    head = _head_outline(traits)
    draw_back_hair(painter, traits, random)
    _draw_body(painter, traits)
    _draw_head(painter, traits, head)
    draw_beard(painter, traits, head)
    draw_nose(painter, traits)
    draw_mouth(painter, traits)
    for side in (-1, 1):
        draw_eye(painter, traits, side)
    draw_front_hair(painter, traits, random)
    draw_glasses(painter, traits)
    return _light(painter.result(), traits, random)


def _background(random: np.random.Generator) -> np.ndarray:
    """A blurred room or sky: a few colours, enlarged."""
    wall = random.uniform(60, 215) + random.normal(0, 18, 3)
    coarse = wall + random.normal(0, 22, (4, 4, 1)) + random.normal(0, 8, (4, 4, 3))
    coarse += np.linspace(18, -18, 4)[:, None, None]
    return np.clip(coarse, 0, 255).astype(np.uint8)


def _head_outline(traits: Traits) -> list[Point]:
    """Skull and jaw, from the crown round; the jaw narrows below the cheekbones."""
    points: list[Point] = []
    for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
        x, y = np.cos(angle), np.sin(angle)
        if y > 0:  # below the middle of the head
            width = traits.head_width * (1 - traits.jaw * y**2.2)
            points.append((float(width * np.sign(x) * abs(x) ** 0.82), float(0.02 + (traits.chin - 0.02) * y**0.95)))
        else:
            points.append((float(traits.head_width * x), float(0.02 + 0.66 * y)))
    return points


def _draw_body(painter: Painter, traits: Traits) -> None:
    neck = 0.19 if traits.is_feminine else 0.24
    shoulder = 0.72 if traits.is_feminine else 0.84
    cloth_dark = mixed(traits.clothes, (0, 0, 0), 0.35)
    torso = [(-shoulder - 0.3, 1.6), (-shoulder, 0.98), (-0.32, 0.82), (0, 0.86), (0.32, 0.82), (shoulder, 0.98)]
    throat = [
        (-neck, 0.3),
        (-neck, 0.78),
        (-neck - 0.1, 0.88),
        (0, 1.02),
        (neck + 0.1, 0.88),
        (neck, 0.78),
        (neck, 0.3),
    ]
    painter.shape(smooth([*torso, (shoulder + 0.3, 1.6)]), traits.clothes)
    painter.soft(smooth([*torso, (shoulder + 0.3, 1.6)]), cloth_dark, 0.5, 0.12, inside=ellipse((0.6, 1.2), 0.5, 0.45))
    painter.shape(smooth(throat), traits.shadow(0.15))
    painter.line(smooth(throat)[11:40], cloth_dark, 0.02)
    painter.shape([(-neck, 0.3), (-neck, 0.7), (neck, 0.7), (neck, 0.3)], traits.shadow(0.15))
    chin_shadow = ellipse((traits.yaw, traits.chin - 0.02), 0.27, 0.14)
    painter.soft(chin_shadow, traits.shadow(0.75), 0.75, 0.045, inside=smooth(throat))


def _draw_head(painter: Painter, traits: Traits, head: list[Point]) -> None:
    for side in (-1, 1):
        center = (side * (traits.head_width - 0.005) - traits.yaw * 0.5, 0.06)
        painter.shape(ellipse(center, 0.055, 0.115), traits.shadow(0.18))
        painter.soft(ellipse(center, 0.025, 0.07), traits.shadow(0.6), 0.6, 0.02)
    painter.shape(head, traits.skin)
    painter.soft(ellipse((0.0, -0.1), 0.22, 0.3), mixed(traits.skin, (255, 250, 240), 0.5), 0.35, 0.12, inside=head)
    for side in (-1, 1):
        painter.soft(ellipse((side * 0.27 + traits.yaw, 0.2), 0.1, 0.08), (224, 92, 80), 0.22, 0.06, inside=head)
        rim = ellipse((side * (traits.head_width + 0.06), 0.2), 0.14, 0.5)
        painter.soft(rim, traits.shadow(0.6), 0.55, 0.08, inside=head)
    painter.soft(ellipse((0, traits.chin + 0.05), 0.25, 0.09), traits.shadow(0.5), 0.4, 0.05, inside=head)


def _light(pixels: np.ndarray, traits: Traits, random: np.random.Generator) -> np.ndarray:
    """Light from one side, its colour, and a trace of sensor noise."""
    size = pixels.shape[0]
    across = np.linspace(-1, 1, size)[None, :, None]
    down = np.linspace(-1, 1, size)[:, None, None]
    brightness = float(random.uniform(0.88, 1.08)) * (1 + 0.22 * traits.light * across - 0.06 * down)
    tint = np.array([1 + traits.warmth, 1.0, 1 - traits.warmth])
    noise = random.normal(0, 1.5, pixels.shape)
    return np.clip(np.rint(pixels * brightness * tint + noise), 0, 255).astype(np.uint8)
