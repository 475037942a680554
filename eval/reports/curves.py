"""Curves as SVG text for a web page: no file, no date in them, the page's own font and colours, a title and a text."""

import hashlib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey print by the markers beside it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#767676")
_MARKERS = "osD^vPX"
_INK, _FAINT = "#1c2733", "#c9d1d9"
_VARIABLES = {_INK: "ink", _FAINT: "grid"} | {colour: f"series-{n}" for n, colour in enumerate(COLOURS)}
"""Colours that the page decides: it has others in the dark."""
_UNITS = ((172_800.0, "days", 86_400.0), (7200.0, "hours", 3600.0), (120.0, "minutes", 60.0), (0.0, "seconds", 1.0))

_TICKS = [1, 2, 2.5, 5, 10]

Shape = Literal["wide", "half", "narrow"]
_INCHES: dict[Shape, tuple[float, float]] = {"wide": (8.6, 3.4), "half": (4.2, 2.6), "narrow": (4.0, 3.0)}
Point = tuple[float, float, float, float]
"""(x, value, low, high)"""


@dataclass(frozen=True)
class Axis:
    """What runs along the bottom."""

    label: str
    is_count: bool = True
    """Whole numbers alone, such as steps."""


def time_axis(longest_seconds: float) -> tuple[Axis, float]:
    """The axis of times up to `longest_seconds`, and how many seconds its unit has."""
    _, unit, seconds = next(row for row in _UNITS if longest_seconds >= row[0])
    return Axis(f"{unit} since the start of training", is_count=False), seconds


def distance_chart(
    series: Mapping[str, Sequence[Point]],
    axis: Axis,
    title: str,
    colours: Mapping[str, str],
    shape: Shape = "wide",
    lower_is_better: bool = True,
) -> str:
    """One protocol's number over training, a line for each run, intervals as bands. Returns SVG text."""
    figure, axes = _figure(shape)
    best_of = min if lower_is_better else max
    told = []
    for place, (name, unordered) in enumerate(series.items()):
        points = sorted(unordered)
        x, value, low, high = zip(*points, strict=True)
        marker = _MARKERS[list(colours).index(name) % len(_MARKERS)]
        axes.fill_between(x, low, high, color=colours[name], alpha=0.18, linewidth=0)
        axes.plot(x, value, color=colours[name], marker=marker, markersize=4.5, label=name, zorder=3 + place)
        best, last = best_of(points, key=lambda point: point[1]), points[-1]
        told.append(_in_words(name, points[0], best, last, axis))
        if shape != "half" and len(series) == 1:
            for point in {best, last}:
                place_of = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 9}
                axes.annotate(format_value(point[1]), point[:2], color=_INK, **place_of)  # type: ignore[arg-type]
    _finish(axes, axis, title, [bound for points in series.values() for point in points for bound in point[1:]])
    _legend(axes, len(series))
    return _svg(figure, f"{title} over {axis.label}", "; ".join(told), shape)


def loss_chart(
    series: Mapping[str, Sequence[tuple[int, float]]], colours: Mapping[str, str], shape: Shape = "wide"
) -> str:
    """Training loss, raw points faint and smoothed ones in front, on a logarithmic axis. Returns SVG text."""
    figure, axes = _figure(shape)
    told, shown = [], []
    for name, points in series.items():
        kept = [(step, value) for step, value in points if math.isfinite(value) and value > 0]
        steps, values = [step for step, _ in kept], [value for _, value in kept]
        axes.plot(steps, values, color=colours[name], alpha=0.3, linewidth=0.8)
        axes.plot(steps, smooth(values), color=colours[name], linewidth=1.8, label=name)
        shown += values
        if kept:
            first, last = (f"{format_value(value)} at step {step:,}" for step, value in (kept[0], kept[-1]))
            told.append(f"{name}: {first}, {last}")
    _finish(axes, Axis("step"), "loss", shown)
    _legend(axes, len(series))
    return _svg(figure, "Training loss over steps", "; ".join(told), shape)


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """Exponential moving average over about `share` of the points, started without bias."""
    decay = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(total / weight)
    return smoothed


def format_value(value: float) -> str:
    """Three significant digits, without an exponent where people would not write one."""
    if value == 0 or 0.001 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2e}"


def colour_of(colour: str) -> str:
    """A series' colour as the page's style names it."""
    return f"var(--{_VARIABLES[colour]})"


def _in_words(name: str, first: Point, best: Point, last: Point, axis: Axis) -> str:
    """What a reader sees of a curve, for one who hears it."""
    unit = axis.label.partition(" ")[0]
    values = [f"{format_value(point[1])} at {unit} {format_value(point[0])}" for point in (first, best, last)]
    return f"{name}: first {values[0]}, best {values[1]}, last {values[2]}"


def _figure(shape: Shape) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_INCHES[shape], layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Axes, axis: Axis, y_label: str, values: Sequence[float]) -> None:
    """values: all that is drawn. Over a wide range of positive ones the axis is logarithmic; it need not hold 0."""
    axes.margins(x=0.03, y=0.12)
    if values and 0 < 4 * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICKS))
    few = axes.get_figure(root=True).get_figwidth() < 5  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(MaxNLocator(5 if few else 9, steps=_TICKS, integer=axis.is_count))
    if axis.is_count:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(axis.label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)


def _legend(axes: Axes, num_series: int) -> None:
    if num_series > 1:
        for text in axes.legend(frameon=False, fontsize=9, labelcolor=_INK).get_texts():
            text.set_parse_math(False)  # a run may be called $x$


def _svg(figure: Figure, title: str, told: str, shape: Shape) -> str:
    """The <svg> element alone, which says itself what it shows; `shape` is its class."""
    # Makes the ids that a figure refers to differ between the figures of a page, and stay between writings.
    salt = hashlib.sha256(f"{title}/{told}/{shape}".encode()).hexdigest()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"(?s) <metadata>.*</metadata>\n", "", text[text.index("<svg") :])
    text = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", text)  # the same in every figure
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour.lower(), f"var(--{variable})")
    names = f"<title>{html.escape(title)}</title><desc>{html.escape(told)}</desc>"
    start = text.index(">") + 1
    return f'<svg role="img" class="{shape}"{text[4:start]}{names}{text[start:]}'
