"""Hair: what falls behind the head, what lies over the skull and the forehead, and beards."""

import numpy as np

from data_pipeline.demo.face_features import DARK
from data_pipeline.demo.face_traits import Traits
from data_pipeline.demo.painter import Painter, Point, ellipse, mixed, smooth


def draw_back_hair(painter: Painter, traits: Traits, random: np.random.Generator) -> None:
    """What falls behind the head and the shoulders."""
    dark = mixed(traits.hair, (0, 0, 0), 0.3)
    width = traits.head_width
    if traits.style in ("long", "bob"):
        bottom = 0.95 if traits.style == "long" else 0.5
        spread = width + (0.16 if traits.style == "long" else 0.14)
        painter.shape(
            smooth(
                [
                    (0, -0.8),
                    (width, -0.6),
                    (spread, 0.0),
                    (spread + 0.03, bottom * 0.7),
                    (width, bottom),
                    (0, bottom - 0.1),
                    (-width, bottom),
                    (-spread - 0.03, bottom * 0.7),
                    (-spread, 0.0),
                    (-width, -0.6),
                ]
            ),
            dark,
        )
    if traits.style == "bun":
        painter.shape(ellipse((traits.parting * 0.3, -0.82), 0.19, 0.17), dark)
    if traits.style == "curly":
        for angle in np.linspace(150, 390, 15):
            radius = float(random.uniform(0.15, 0.21))
            center = (
                float(np.cos(np.radians(angle))) * (width + 0.05),
                float(np.sin(np.radians(angle))) * 0.58 - 0.08,
            )
            painter.shape(ellipse(center, radius, radius), dark)


def draw_front_hair(painter: Painter, traits: Traits, random: np.random.Generator) -> None:
    """Hair over the skull and the forehead, with strands of light."""
    if traits.style == "bald":
        crown = ellipse((-0.1, -0.45), 0.14, 0.08)
        painter.soft(crown, mixed(traits.skin, (255, 255, 255), 0.6), 0.5, 0.06)
        return
    width, line, part = traits.head_width + 0.03, traits.hairline, traits.parting
    top = -0.74 if traits.style in ("short", "bun") else -0.78
    temple = {"short": -0.08, "side": -0.04, "bun": -0.1, "fringe": 0.0, "curly": 0.0}.get(traits.style, 0.12)
    outline = smooth(
        [
            (-width, temple),
            (-width - 0.015, -0.3),
            (-width * 0.72, top + 0.12),
            (part * 0.5, top),
            (width * 0.72, top + 0.12),
            (width + 0.015, -0.3),
            (width, temple),
            (width * 0.9, temple - 0.05),
            *_edge_on_forehead(traits, width),
            (-width * 0.9, temple - 0.05),
        ]
    )
    painter.soft(ellipse((0, line + 0.12), width * 0.8, 0.1), traits.shadow(0.7), 0.3, 0.05)
    painter.shape(outline, traits.hair)
    if traits.style == "curly":
        for x in np.linspace(-width * 0.85, width * 0.85, 8):
            radius = float(random.uniform(0.09, 0.13))
            height = line - 0.1 + 0.35 * float(x) ** 2 / width**2
            painter.shape(ellipse((float(x), height), radius, radius), traits.hair)
    _draw_strands(painter, traits, outline, random)
    if traits.style in ("long", "bob"):
        _draw_side_locks(painter, traits, width)


def _edge_on_forehead(traits: Traits, width: float) -> list[Point]:
    """Where the hair ends above the face, from right to left."""
    if traits.style == "fringe":
        brow = -0.2
        return [
            (width * 0.8, brow + 0.02),
            (width * 0.3, brow - 0.02),
            (-width * 0.3, brow),
            (-width * 0.8, brow),
        ]
    line, part = traits.hairline, traits.parting
    return [
        (width * 0.82, line + 0.16),
        (part + 0.16, line),
        (part, line - 0.03),
        (part - 0.16, line + 0.02),
        (-width * 0.82, line + 0.16),
    ]


def _draw_strands(painter: Painter, traits: Traits, outline: list[Point], random: np.random.Generator) -> None:
    shine, dark = mixed(traits.hair, (255, 240, 220), 0.35), mixed(traits.hair, (0, 0, 0), 0.45)
    for _ in range(7):
        x = float(random.uniform(-0.4, 0.4))
        strand = smooth([(x * 0.5, -0.8), (x * 0.95, -0.55), (x * 1.1, -0.28), (x * 0.95 + 0.03, -0.55)])
        painter.soft(strand, shine if random.random() < 0.5 else dark, 0.55, 0.015, inside=outline)
    sheen = ellipse((0.12 * (1 if traits.light > 0 else -1), -0.6), 0.24, 0.07)
    painter.soft(sheen, shine, 0.45, 0.05, inside=outline)


def _draw_side_locks(painter: Painter, traits: Traits, width: float) -> None:
    bottom = 0.9 if traits.style == "long" else 0.42
    for side in (-1, 1):
        lock = smooth(
            [
                (side * width * 0.78, -0.38),
                (side * (width + 0.06), -0.3),
                (side * (width + 0.13), 0.1),
                (side * (width + 0.11), bottom * 0.8),
                (side * width * 0.95, bottom),
                (side * width * 0.88, bottom * 0.5),
                (side * width * 0.93, 0.0),
            ]
        )
        painter.shape(lock, traits.hair)
        gleam = ellipse((side * (width + 0.04), 0.1), 0.03, 0.3)
        painter.soft(gleam, mixed(traits.hair, (255, 240, 220), 0.35), 0.4, 0.03, inside=lock)


def draw_beard(painter: Painter, traits: Traits, head: list[Point]) -> None:
    if traits.beard == "none":
        return
    x = traits.yaw * 1.3
    color = mixed(traits.hair, DARK, 0.2)
    if traits.beard in ("full", "stubble"):
        opacity = 0.9 if traits.beard == "full" else 0.3
        side = traits.head_width
        jaw = smooth(
            [
                (-side, 0.12),
                (-side * 0.78, 0.27),
                (x - 0.2, 0.31),
                (x, 0.30),
                (x + 0.2, 0.31),
                (side * 0.78, 0.27),
                (side, 0.12),
                (side, 0.8),
                (0, 1.0),
                (-side, 0.8),
            ]
        )
        painter.soft(jaw, color, opacity, 0.025, inside=head)
    if traits.beard == "moustache":
        whiskers = smooth([(x - 0.17, 0.36), (x - 0.06, 0.3), (x, 0.31), (x + 0.06, 0.3), (x + 0.17, 0.36), (x, 0.345)])
        painter.soft(whiskers, color, 0.95, 0.01)
