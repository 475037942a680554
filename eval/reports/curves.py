"""Curves as SVG text for a web page: no file, no date in it, the page's own font."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey print by the markers beside it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
_INK, _FAINT = "#1c2733", "#c9d1d9"

Point = tuple[float, float, float, float]
"""(x, value, low, high)"""


def distance_chart(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    colours: Mapping[str, str],
    wide: bool = True,
    lower_is_better: bool = True,
) -> str:
    """One protocol's number over training, a line for each run, intervals as bands. Returns SVG text."""
    figure, axes = _figure((8.6, 3.5) if wide else (4.2, 2.6))
    for place, (name, points) in enumerate(series.items()):
        x, value, low, high = zip(*sorted(points), strict=True)
        marker = _MARKERS[list(colours).index(name) % len(_MARKERS)]
        axes.fill_between(x, low, high, color=colours[name], alpha=0.18, linewidth=0)
        axes.plot(x, value, color=colours[name], marker=marker, markersize=4.5, label=name, zorder=3 + place)
        if wide and len(series) == 1:
            best = (min if lower_is_better else max)(points, key=lambda point: point[1])
            last = max(points)
            for point in {best, last}:
                text = format_value(point[1])
                axes.annotate(text, point[:2], (0, 8), textcoords="offset points", ha="center", fontsize=9)
    _finish(axes, x_label, y_label, [point[1] for points in series.values() for point in points], len(series))
    return _svg(figure, f"{x_label}/{y_label}")


def loss_chart(series: Mapping[str, Sequence[tuple[int, float]]], colours: Mapping[str, str]) -> str:
    """Training loss, raw points faint and smoothed ones in front, on a logarithmic axis. Returns SVG text."""
    figure, axes = _figure((8.6, 3.0))
    for name, points in series.items():
        steps = [step for step, value in points if math.isfinite(value) and value > 0]
        values = [value for _, value in points if math.isfinite(value) and value > 0]
        axes.plot(steps, values, color=colours[name], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values), color=colours[name], linewidth=1.8, label=name)
    _finish(axes, "step", "loss", [value for points in series.values() for _, value in points], len(series))
    return _svg(figure, "loss")


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


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Axes, x_label: str, y_label: str, values: Sequence[float], num_series: int) -> None:
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) > 4 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.margins(x=0.02, y=0.15)
    else:
        axes.margins(x=0.02, y=0.15)
        if positive and len(positive) == len(values):
            axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    if num_series > 1:
        for text in axes.legend(frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)  # a run may be called $x$


def _svg(figure: Figure, identity: str) -> str:
    """The <svg> element alone. identity: makes ids differ between the figures of a page, and stay between writings."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": identity, "font.family": "sans-serif"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
