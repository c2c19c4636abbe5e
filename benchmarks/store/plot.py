"""Draws the ratios of a run: one panel per row, bars on a logarithmic axis, a mark where the target lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.store.report import Line, Row

_OURS = "#2b6cb0"
_BASE = "#4a5568"
_OTHERS = "#cbd5e0"
_TARGET = "#c53030"
_BAR_INCHES = 0.24
_PANEL_INCHES = 0.75  # title and axis
_LEGEND_INCHES = 0.3
_LEGEND = {"base = 1": _BASE, "ours": _OURS, "others": _OTHERS, "target": _TARGET}
_OUR_WORDS = (
    *("get(", "put", "FeatureStore", "vlm-cache", "plan of", "build", "encoder stage"),
    *("FeatureDataset", "create_unified_dataloader", "LongVA_Cached", "cached"),
    *("snapshot", "ask_choice", "stream of"),
    *("packed, ", "one .pt each", "a folder:", "get_batch"),
)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture as .svg or .png, by the suffix; equal rows give equal bytes of an SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "benchmarks.store", "svg.fonttype": "none", "font.size": 8.5})
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    panels = [(row, drawn) for row in rows if len(drawn := _drawn(row)) > 1]
    heights = [len(drawn) * _BAR_INCHES + _PANEL_INCHES for _, drawn in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9.5, sum(heights) + _LEGEND_INCHES),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for axis, (row, drawn) in zip(axes[:, 0], panels, strict=True):
        _draw_row(axis, row, drawn)
    handles = [Patch(color=colour, label=label) for label, colour in _LEGEND.items()]
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False)
    figure.tight_layout(h_pad=1.2, rect=(0, 0, 1, 1 - _LEGEND_INCHES / figure.get_figheight()))
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, dpi=110, metadata=metadata)
    pyplot.close(figure)


def _drawn(row: Row) -> list[Line]:
    return [line for line in row.lines if line.ratio is not None]


def _draw_row(axis: Any, row: Row, lines: Sequence[Line]) -> None:
    places = range(len(lines))
    ratios = [line.ratio or 0.0 for line in lines]
    axis.barh(places, ratios, color=[_colour(line) for line in lines], height=0.72, zorder=2)
    for place, line, ratio in zip(places, lines, ratios, strict=True):
        label = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
        axis.annotate(label, (ratio, place), xytext=(4, 0), textcoords="offset points", va="center", zorder=4)
        target = line.most_ratio if line.most_ratio is not None else line.least_ratio
        if target is not None:
            axis.plot([target] * 2, [place - 0.48, place + 0.48], color=_TARGET, linewidth=2, zorder=3)
    axis.set_xscale("log")
    axis.set_xlim(min(0.5, *ratios) * 0.9, max(2.0, *ratios) * 2.2)
    axis.axvline(1.0, color=_BASE, linewidth=0.8, linestyle=":", zorder=1)
    axis.set_yticks(list(places), [line.name for line in lines])
    axis.invert_yaxis()
    axis.set_title(row.title, loc="left", fontsize=9, fontweight="bold")
    axis.grid(axis="x", which="major", color="#e2e8f0", zorder=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _colour(line: Line) -> str:
    if line.ratio == 1.0:
        return _BASE
    return _OURS if line.name.startswith(_OUR_WORDS) else _OTHERS
