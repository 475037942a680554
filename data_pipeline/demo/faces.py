"""Procedurally drawn faces: a built-in set of RGB portraits with the variety of a real one, free of licences.

Face i of seed s is a function of (s, i) alone. The proportions are those of an aligned portrait set: eyes a little
above the middle, the head filling most of the picture, shoulders below.
"""

import numpy as np

from data_pipeline.demo.face_hair import draw_back_hair, draw_front_hair
from data_pipeline.demo.face_traits import Traits, random_traits
from data_pipeline.demo.painter import Color, Painter, Point, ellipse, mixed, smooth

MAX_SIZE = 256
_WHITE: Color = (246, 244, 240)
_DARK: Color = (30, 22, 22)


def draw_face(seed: int, index: int, size: int) -> np.ndarray:
    """Face `index` of `seed`: (size, size, 3) uint8, size in [8, 256]. ValueError."""
    if not 8 <= size <= MAX_SIZE:
        raise ValueError(f"faces are drawn at 8 to {MAX_SIZE} pixels, got image_size={size}")
    if index < 0 or seed < 0:
        raise ValueError(f"seed and index must be at least 0, got {seed}, {index}")
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
    _draw_beard(painter, traits, head)
    _draw_nose(painter, traits)
    _draw_mouth(painter, traits)
    for side in (-1, 1):
        _draw_eye(painter, traits, side)
    draw_front_hair(painter, traits, random)
    _draw_glasses(painter, traits)
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


def _draw_eye(painter: Painter, traits: Traits, side: int) -> None:
    center_x, center_y = side * traits.eye_gap + traits.yaw, 0.0
    width, height = traits.eye_size, traits.eye_size * traits.eye_opening
    socket = ellipse((center_x, center_y - 0.02), width * 1.35, height * 2.1)
    painter.soft(socket, traits.shadow(0.6), 0.45, 0.035)
    lid_lift = 0.008
    almond = smooth(
        [
            (center_x - width, center_y + (lid_lift if side > 0 else -lid_lift)),
            (center_x - width * 0.45, center_y - height * 0.9),
            (center_x + width * 0.45, center_y - height * 0.9),
            (center_x + width, center_y + (-lid_lift if side > 0 else lid_lift)),
            (center_x + width * 0.4, center_y + height * 0.7),
            (center_x - width * 0.4, center_y + height * 0.7),
        ]
    )
    painter.shape(almond, _WHITE)
    gaze = (center_x + traits.yaw * 0.3, center_y - height * 0.1)
    radius = height * 0.95
    painter.soft(ellipse(gaze, radius, radius), traits.iris, 1.0, 0.004, inside=almond)
    painter.soft(ellipse(gaze, radius * 0.5, radius * 0.5), (10, 8, 8), 1.0, 0.004, inside=almond)
    glint = (gaze[0] - radius * 0.3, gaze[1] - radius * 0.35)
    painter.shape(ellipse(glint, radius * 0.2, radius * 0.2), (255, 255, 255))
    lash = 0.024 if traits.is_feminine else 0.015
    painter.line(almond[0:31], mixed(traits.hair, _DARK, 0.8), lash)
    painter.line(almond[40:52], traits.shadow(0.55), 0.008)
    _draw_brow(painter, traits, side, center_x)


def _draw_brow(painter: Painter, traits: Traits, side: int, center_x: float) -> None:
    y, length = -traits.brow_height, traits.eye_size * 1.25
    thick = 0.022 if traits.is_feminine else 0.034
    inner, outer = center_x - side * length, center_x + side * length
    brow = smooth(
        [
            (inner, y + 0.012 + traits.brow_tilt),
            (center_x, y - thick),
            (outer, y + 0.01 - traits.brow_tilt),
            (center_x, y + thick * 0.15),
            (inner, y + 0.012 + thick),
        ]
    )
    painter.soft(brow, mixed(traits.hair, _DARK, 0.35), 0.95, 0.008)


def _draw_nose(painter: Painter, traits: Traits) -> None:
    tip_x, tip_y = traits.yaw * 1.7, traits.nose_length
    shaded = 1 if traits.light < 0 else -1
    bridge = smooth(
        [
            (traits.yaw + shaded * 0.02, -0.04),
            (tip_x + shaded * 0.035, tip_y * 0.6),
            (tip_x + shaded * traits.nose_width, tip_y),
            (tip_x + shaded * 0.02, tip_y + 0.01),
        ]
    )
    painter.soft(bridge, traits.shadow(0.55), 0.5, 0.022)
    below = ellipse((tip_x, tip_y + 0.03), traits.nose_width * 0.95, 0.022)
    painter.soft(below, traits.shadow(0.7), 0.6, 0.014)
    highlight = ellipse((tip_x - shaded * 0.01, tip_y * 0.75), 0.018, 0.09)
    painter.soft(highlight, mixed(traits.skin, (255, 255, 255), 0.6), 0.5, 0.02)
    for side in (-1, 1):
        nostril = ellipse((tip_x + side * traits.nose_width * 0.5, tip_y + 0.012), 0.017, 0.011)
        painter.soft(nostril, traits.shadow(0.95), 0.85, 0.006)
        wing = ellipse((tip_x + side * traits.nose_width, tip_y - 0.01), 0.012, 0.03)
        painter.soft(wing, traits.shadow(0.6), 0.5, 0.01)


def _draw_mouth(painter: Painter, traits: Traits) -> None:
    x, y = traits.yaw * 1.3, 0.385
    width, lift, gap = traits.mouth_width, traits.smile, traits.mouth_opening
    lips = mixed(
        traits.skin, (190, 40, 60) if traits.is_feminine else (170, 80, 76), 0.62 if traits.is_feminine else 0.42
    )
    upper = smooth(
        [
            (x - width, y - lift),
            (x - width * 0.35, y - 0.036 - gap * 0.4),
            (x, y - 0.026 - gap * 0.4),
            (x + width * 0.35, y - 0.036 - gap * 0.4),
            (x + width, y - lift),
            (x, y + lift * 0.5 + gap * 0.5),
        ]
    )
    lower = smooth(
        [
            (x - width, y - lift),
            (x, y + lift * 0.3),
            (x + width, y - lift),
            (x + width * 0.5, y + 0.04 + lift * 0.6 + gap),
            (x, y + 0.056 + lift * 0.8 + gap),
            (x - width * 0.5, y + 0.04 + lift * 0.6 + gap),
        ]
    )
    painter.soft(ellipse((x, y + 0.1 + gap), width * 0.6, 0.02), traits.shadow(0.6), 0.45, 0.02)
    painter.shape(lower, mixed(lips, (255, 255, 255), 0.08))
    painter.shape(upper, mixed(lips, (0, 0, 0), 0.1))
    if gap:
        inner = smooth(
            [
                (x - width * 0.82, y - lift * 0.9),
                (x, y - 0.004),
                (x + width * 0.82, y - lift * 0.9),
                (x, y + lift * 0.6 + gap * 1.1),
            ]
        )
        painter.shape(inner, (84, 28, 30))
        painter.soft(ellipse((x, y - 0.012), width * 0.72, gap * 0.9 + 0.012), _WHITE, 1.0, 0.004, inside=inner)
    else:
        seam = [(x - width * 0.97, y - lift), (x - width * 0.5, y - lift * 0.1), (x, y + lift * 0.4)]
        mirrored = [(2 * x - px, py) for px, py in reversed(seam[:-1])]
        painter.line([*seam, *mirrored], mixed(lips, (40, 0, 0), 0.6), 0.013)
    painter.soft(ellipse((x, y + 0.03 + gap), width * 0.3, 0.012), (255, 255, 255), 0.25, 0.012)


def _draw_beard(painter: Painter, traits: Traits, head: list[Point]) -> None:
    if traits.beard == "none":
        return
    x = traits.yaw * 1.3
    color = mixed(traits.hair, _DARK, 0.2)
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


def _draw_glasses(painter: Painter, traits: Traits) -> None:
    if traits.glasses == "none":
        return
    frame: Color = (34, 30, 32)
    radius = traits.eye_size * 1.4
    for side in (-1, 1):
        center = (side * traits.eye_gap + traits.yaw, 0.015)
        if traits.glasses == "square":
            rim = smooth(
                [(center[0] + dx * radius, center[1] + dy * radius * 0.72) for dx, dy in _SQUARE], points_per_corner=6
            )
        else:
            rim = ellipse(center, radius, radius * (0.85 if traits.glasses == "sun" else 0.95))
        if traits.glasses == "sun":
            painter.shape(rim, (34, 32, 40))
            painter.soft(ellipse((center[0] - 0.03, -0.03), 0.05, 0.03), (200, 210, 230), 0.45, 0.02, inside=rim)
        else:
            painter.soft(rim, (220, 235, 245), 0.12, 0.01)
        painter.line([*rim, rim[0]], frame, 0.02)
        painter.line([(center[0] + side * radius, -0.01), (side * traits.head_width, -0.03)], frame, 0.018)
    bridge = traits.eye_gap - radius
    painter.line([(traits.yaw - bridge, 0.0), (traits.yaw, -0.015), (traits.yaw + bridge, 0.0)], frame, 0.02)


_SQUARE = ((-1, -0.8), (-0.8, -1), (0.8, -1), (1, -0.8), (1, 0.7), (0.75, 1), (-0.75, 1), (-1, 0.7))


def _light(pixels: np.ndarray, traits: Traits, random: np.random.Generator) -> np.ndarray:
    """Light from one side, its colour, and a trace of sensor noise."""
    size = pixels.shape[0]
    across = np.linspace(-1, 1, size)[None, :, None]
    down = np.linspace(-1, 1, size)[:, None, None]
    brightness = float(random.uniform(0.88, 1.08)) * (1 + 0.22 * traits.light * across - 0.06 * down)
    tint = np.array([1 + traits.warmth, 1.0, 1 - traits.warmth])
    noise = random.normal(0, 1.5, pixels.shape)
    return np.clip(np.rint(pixels * brightness * tint + noise), 0, 255).astype(np.uint8)
