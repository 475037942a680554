"""Eyes, nose and mouth, and glasses over them."""

from data_pipeline.demo.face_traits import Traits
from data_pipeline.demo.painter import Color, Painter, ellipse, mixed, smooth

WHITE: Color = (246, 244, 240)
DARK: Color = (30, 22, 22)
_SQUARE = ((-1, -0.8), (-0.8, -1), (0.8, -1), (1, -0.8), (1, 0.7), (0.75, 1), (-0.75, 1), (-1, 0.7))


def draw_eye(painter: Painter, traits: Traits, side: int) -> None:
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
    painter.shape(almond, WHITE)
    gaze = (center_x + traits.yaw * 0.3, center_y - height * 0.1)
    radius = height * 0.95
    painter.soft(ellipse(gaze, radius, radius), traits.iris, 1.0, 0.004, inside=almond)
    painter.soft(ellipse(gaze, radius * 0.5, radius * 0.5), (10, 8, 8), 1.0, 0.004, inside=almond)
    glint = (gaze[0] - radius * 0.3, gaze[1] - radius * 0.35)
    painter.shape(ellipse(glint, radius * 0.2, radius * 0.2), (255, 255, 255))
    lash = 0.024 if traits.is_feminine else 0.015
    painter.line(almond[0:31], mixed(traits.hair, DARK, 0.8), lash)
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
    painter.soft(brow, mixed(traits.hair, DARK, 0.35), 0.95, 0.008)


def draw_nose(painter: Painter, traits: Traits) -> None:
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


def draw_mouth(painter: Painter, traits: Traits) -> None:
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
        _draw_teeth(painter, traits, x, y)
    else:
        seam = [(x - width * 0.97, y - lift), (x - width * 0.5, y - lift * 0.1), (x, y + lift * 0.4)]
        mirrored = [(2 * x - px, py) for px, py in reversed(seam[:-1])]
        painter.line([*seam, *mirrored], mixed(lips, (40, 0, 0), 0.6), 0.013)
    painter.soft(ellipse((x, y + 0.03 + gap), width * 0.3, 0.012), (255, 255, 255), 0.25, 0.012)


def _draw_teeth(painter: Painter, traits: Traits, x: float, y: float) -> None:
    """What an open mouth with its middle at (x, y) shows."""
    width, lift, gap = traits.mouth_width, traits.smile, traits.mouth_opening
    inner = smooth(
        [
            (x - width * 0.82, y - lift * 0.9),
            (x, y - 0.004),
            (x + width * 0.82, y - lift * 0.9),
            (x, y + lift * 0.6 + gap * 1.1),
        ]
    )
    painter.shape(inner, (84, 28, 30))
    painter.soft(ellipse((x, y - 0.012), width * 0.72, gap * 0.9 + 0.012), WHITE, 1.0, 0.004, inside=inner)


def draw_glasses(painter: Painter, traits: Traits) -> None:
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
