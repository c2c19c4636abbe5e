"""Plots as inline SVG by matplotlib: text stays text and takes the page's colour, so that dark pages can be read."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure

# Told apart also without seeing red and green, and visible on white and on black. Source: the palette of Okabe and Ito.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")
_MARKERS = "os^Dv<>"  # lines that lie on each other can be told apart
_P = ParamSpec("_P")
_TEXT = "#010203"  # no plot uses it; in the SVG it becomes the page's own colour
_LONGEST_LABEL = 34
_LANE_INCHES, _LANE_SHARE = 0.42, 0.84  # of one label's lines, without the gap to the next; and its share of the pitch
_SETTINGS = {
    "svg.fonttype": "none",
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "font.size": 10,
    "legend.frameon": False,
    # A "$" in a data set's name is no formula.
    "text.parse_math": False,
}


def _styled(draw: Callable[_P, str]) -> Callable[_P, str]:
    """Let matplotlib's settings hold for the whole drawing: labels and legends read them when they are made."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **options: _P.kwargs) -> str:
        with matplotlib.rc_context(_SETTINGS):
            return draw(*args, **options)

    return styled


@_styled
def horizontal_bars(
    labels: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, unit: str, alt: str
) -> str:
    """Return stacked bars, one for each label from the top down, with a legend where there are several series."""
    rows_of_legend = len(series) if len(series) > 1 else 0
    figure, axes = _figure(height=1.1 + 0.3 * len(labels) + 0.22 * rows_of_legend)
    starts = [0.0] * len(labels)
    for position, (name, values) in enumerate(series.items()):
        axes.barh(range(len(labels)), values, left=starts, color=_colour(position), label=name, height=0.72)
        starts = [start + value for start, value in zip(starts, values, strict=True)]
    axes.set_yticks(range(len(labels)), [elided(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, max(starts, default=0) * 1.05 or 1)
    if all(float(start).is_integer() for start in starts):
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no fifth of a unit
    axes.xaxis.set_major_formatter(_number)
    axes.set_xlabel(unit)
    axes.set_title(title)
    if len(series) > 1:
        figure.legend(loc="outside lower left")
    return _svg(figure, alt, salt=title)


@_styled
def columns(labels: Sequence[str], values: Sequence[float], *, title: str, unit: str, axis: str, alt: str) -> str:
    """Return upright bars in the order given."""
    figure, axes = _figure(height=3.2)
    axes.bar(range(len(labels)), values, color=COLOURS[0], width=0.72)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
    axes.yaxis.set_major_formatter(_number)
    axes.set_ylabel(unit)
    axes.set_xlabel(axis)
    axes.set_title(title)
    return _svg(figure, alt, salt=title)


@_styled
def level(value: float, marks: Mapping[str, float], *, title: str, unit: str, alt: str) -> str:
    """Return one bar of `value` against named marks, such as limits."""
    figure, axes = _figure(height=1.3)
    highest = max([value, *marks.values(), 0])
    is_above = bool(marks) and value > max(marks.values())
    axes.barh([0], [value], color=COLOURS[5] if is_above else COLOURS[0], height=0.5)
    for position, (name, at) in enumerate(marks.items()):
        axes.axvline(at, color=COLOURS[5], linestyle="-" if position == 0 else "--", linewidth=2, label=name)
    axes.set_ylim(-0.4, 0.4)
    axes.set_xlim(0, highest * 1.03 or 1)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(_number)
    axes.set_xlabel(unit)
    axes.set_title(title)
    if marks:
        figure.legend(loc="outside upper right", ncols=len(marks))
    return _svg(figure, alt, salt=title)


@_styled
def lines_of_bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    marks: Sequence[tuple[float, int]],
    *,
    mark: str,
    end: float,
    unit: str,
    alt: str,
) -> str:
    """Return a line for each label from the top down, and in it one for each series with bars (begin, end).

    `marks` are crosses (at, label), which the legend calls `mark`.
    """
    figure, axes = _lines(labels, series, end=end, unit=unit)
    # A thick line with gaps is one path, where a thousand rectangles would be a thousand.
    thickness = _LANE_INCHES * 72 / len(series) * 0.8
    with matplotlib.rc_context({"path.simplify": False}):
        for position, bars_of_labels in enumerate(series.values()):
            for line, bars in enumerate(bars_of_labels):
                at = [moment for begin, stop in bars for moment in (begin, stop, math.nan)]
                height = [_line_within(line, position, len(series))] * len(at)
                axes.plot(at, height, color=_colour(position), linewidth=thickness, solid_capstyle="butt")
    _mark(axes, marks, mark)
    figure.legend(loc="outside lower left", ncols=len(series) + 1)
    return _svg(figure, alt, salt=alt)


@_styled
def lines_of_shares(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float]]],
    marks: Sequence[tuple[float, int]],
    *,
    mark: str,
    end: float,
    unit: str,
    alt: str,
) -> str:
    """Return the same with shares, 0 to 1, of equal steps of time, as columns whose height is the share."""
    figure, axes = _lines(labels, series, end=end, unit=unit)
    for position, shares_of_labels in enumerate(series.values()):
        for line, shares in enumerate(shares_of_labels):
            borders = [step * end / len(shares) for step in range(len(shares) + 1)]
            ground = _line_within(line, position, len(series)) + 0.4 * _LANE_SHARE / len(series)
            heights = [ground - 0.8 * _LANE_SHARE / len(series) * share for share in shares]
            axes.stairs(heights, borders, baseline=ground, color=_colour(position), fill=True)
    _mark(axes, marks, mark)
    figure.legend(loc="outside lower left", ncols=len(series) + 1)
    return _svg(figure, alt, salt=alt)


@_styled
def steps(
    borders: Sequence[float], values: Sequence[float], level: float | None, *, name: str, unit: str, axis: str, alt: str
) -> str:
    """Return values over equal steps of an axis, against a level that the legend calls `name`."""
    figure, axes = _figure(height=3.2)
    axes.stairs(values, borders, color=COLOURS[0], fill=True, alpha=0.35)
    axes.stairs(values, borders, color=COLOURS[0])
    if level is not None:
        axes.axhline(level, color=COLOURS[5], linestyle="--", linewidth=2, label=name)
        figure.legend(loc="outside upper left")
    axes.set_ylim(0, max([*values, level or 0.0]) * 1.08 or 1)
    axes.set_xlim(0, borders[-1])
    axes.yaxis.set_major_formatter(_number)
    axes.xaxis.set_major_formatter(_number)
    axes.set_ylabel(unit)
    axes.set_xlabel(axis)
    return _svg(figure, alt, salt=alt)


@_styled
def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, unit: str, axis: str, alt: str) -> str:
    """Return a line for each series of points (x, y), with a legend where there are several; y begins at 0."""
    figure, axes = _figure(height=3.2)
    for position, (name, points) in enumerate(series.items()):
        across, up = zip(*points, strict=True) if points else ((), ())
        axes.plot(across, up, color=_colour(position), marker=_MARKERS[position % len(_MARKERS)], label=name)
    axes.set_ylim(0, max((y for points in series.values() for _, y in points), default=0) * 1.08 or 1)
    axes.set_xlim(0)
    if all(float(x).is_integer() for points in series.values() for x, _ in points):
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no fifth of a frame
    axes.yaxis.set_major_formatter(_number)
    axes.xaxis.set_major_formatter(_number)
    axes.set_ylabel(unit)
    axes.set_xlabel(axis)
    axes.set_title(title)
    if len(series) > 1:
        figure.legend(loc="outside right upper")
    return _svg(figure, alt, salt=title)


def elided(label: str) -> str:
    """Return a label short enough for an axis: names of episodes differ at both ends, so the middle goes."""
    if len(label) <= _LONGEST_LABEL:
        return label
    half = (_LONGEST_LABEL - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


def _lines(labels: Sequence[str], series: Mapping[str, object], *, end: float, unit: str) -> tuple[Figure, Any]:
    figure, axes = _figure(height=1.1 + _LANE_INCHES / _LANE_SHARE * len(labels))
    for position, name in enumerate(series):
        axes.plot([], [], color=_colour(position), linewidth=7, label=name)
    axes.set_yticks(range(len(labels)), [elided(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(_number)
    axes.set_xlabel(unit)
    return figure, axes


def _line_within(line: int, position: int, count: int) -> float:
    """Return the height of a series' line within a label's."""
    return line + _LANE_SHARE * ((position + 0.5) / count - 0.5)


def _mark(axes: Any, marks: Sequence[tuple[float, int]], name: str) -> None:
    if marks:
        at, lines = zip(*marks, strict=True)
        axes.plot(at, lines, "x", color=COLOURS[5], markersize=9, markeredgewidth=2.5, label=name)


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _number(value: float, position: int) -> str:
    """What an axis says: never `1e7`, as matplotlib would write ten millions."""
    return f"{value:,.10g}"


def _figure(*, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10.5, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, alt: str, *, salt: str) -> str:
    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Equal plots give equal bytes; and clip paths of two plots on one page must not share an id.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    # Numbered ids repeat from plot to plot, and nothing refers to them.
    text = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
