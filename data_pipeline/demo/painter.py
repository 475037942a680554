"""A small canvas for smooth drawings: shapes given in face coordinates, turned, shifted and antialiased."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]
_MIN_CANVAS_PIXELS = 128


class Painter:
    """Draws on a square RGB picture. In its coordinates (0, 0) is the middle, 1 is half the picture, y points down.

    Sharp shapes are drawn larger than the result and shrunk; soft ones are blurred masks, drawn coarsely to be quick.
    """

    def __init__(self, size: int, roll: float = 0.0, scale: float = 1.0, shift: Point = (0.0, 0.0)) -> None:
        """size: side of the result, pixels. roll: rotation of what is drawn, radians. shift: of its middle."""
        self._size = size
        self._canvas = size * max(4 if size <= 64 else 2, -(-_MIN_CANVAS_PIXELS // size))
        self._soft_divisor = max(1, self._canvas // 128)
        self._cos, self._sin, self._scale, self._shift = math.cos(roll), math.sin(roll), scale, shift
        self.image = Image.new("RGB", (self._canvas, self._canvas))
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, pixels: np.ndarray) -> None:
        """Cover the picture with a small (h, w, 3) uint8 array, enlarged smoothly."""
        background = Image.fromarray(pixels).resize(self.image.size, Image.Resampling.BICUBIC)
        self.image.paste(background)

    def shape(self, points: Sequence[Point], color: Color) -> None:
        """A filled polygon."""
        self._draw.polygon(self._pixels(points), fill=color)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """A line with round joints; width in face coordinates."""
        pixels = max(1, round(width * self._scale * self._canvas / 2))
        self._draw.line(self._pixels(points), fill=color, width=pixels, joint="curve")

    def soft(
        self,
        points: Sequence[Point],
        color: Color,
        opacity: float,
        blur: float,
        inside: Sequence[Point] | None = None,
    ) -> None:
        """A polygon with blurred edges, see-through by 1 - opacity, cut to the outline `inside` if one is given."""
        # Only the part of the picture that the blurred shape reaches is worked on.
        corners = self._pixels(points)
        radius = blur * self._scale * self._canvas / 2
        box = self._box_around(corners, 3 * radius)
        size = (box[2] - box[0], box[3] - box[1])
        if min(size) < 1:
            return
        divisor = self._soft_divisor
        mask = Image.new("L", (-(-size[0] // divisor), -(-size[1] // divisor)))
        outline = [((x - box[0]) / divisor, (y - box[1]) / divisor) for x, y in corners]
        ImageDraw.Draw(mask).polygon(outline, fill=round(255 * opacity))
        mask = mask.filter(ImageFilter.GaussianBlur(radius / divisor)).resize(size, Image.Resampling.BILINEAR)
        if inside is not None:
            window = Image.new("L", size)
            outline = [(x - box[0], y - box[1]) for x, y in self._pixels(inside)]
            ImageDraw.Draw(window).polygon(outline, fill=255)
            mask = ImageChops.multiply(mask, window)
        self.image.paste(color, box, mask)

    def result(self) -> np.ndarray:
        """(size, size, 3) uint8."""
        return np.asarray(self.image.resize((self._size, self._size), Image.Resampling.BOX))

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        turn = np.array([[self._cos, self._sin], [-self._sin, self._cos]]) * self._scale
        turned = np.array(points) @ turn + self._shift
        return [(x, y) for x, y in ((turned + 1) * (self._canvas / 2)).tolist()]

    def _box_around(self, corners: Sequence[Point], margin: float) -> tuple[int, int, int, int]:
        across, down = [x for x, _ in corners], [y for _, y in corners]
        low = [max(0, math.floor(min(side) - margin)) for side in (across, down)]
        high = [min(self._canvas, math.ceil(max(side) + margin)) for side in (across, down)]
        return low[0], low[1], high[0], high[1]


def ellipse(center: Point, width: float, height: float, start: float = 0.0, stop: float = 360.0) -> list[Point]:
    """Points of an ellipse with these half-axes, or of a part of it; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 48))
    across, down = center[0] + width * np.cos(angles), center[1] + height * np.sin(angles)
    return list(zip(across.tolist(), down.tolist(), strict=True))


def smooth(corners: Sequence[Point], points_per_corner: int = 10) -> list[Point]:
    """A closed curve through the corners (Catmull-Rom)."""
    ring = np.array(corners)
    before, after, beyond = np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0), np.roll(ring, -2, axis=0)
    t = np.linspace(0, 1, points_per_corner, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * ring[:, None]
        + (after - before)[:, None] * t
        + (2 * before - 5 * ring + 4 * after - beyond)[:, None] * t**2
        + (3 * ring - before - 3 * after + beyond)[:, None] * t**3
    )
    return [(x, y) for x, y in curve.reshape(-1, 2).tolist()]


def mixed(a: Color, b: Color, share_of_b: float) -> Color:
    """A colour between two."""
    red, green, blue = (round(x + (y - x) * share_of_b) for x, y in zip(a, b, strict=True))
    return (red, green, blue)
