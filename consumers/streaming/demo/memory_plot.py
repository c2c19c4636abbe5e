"""The cache's size over the chunks of a stream, as inline SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.streaming.demo.records import MemoryPoint

_WIDTH, _HEIGHT = 480, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 12, 30


def memory_plot(history: Sequence[MemoryPoint]) -> str:
    """Return the plot; without points, its axes alone."""
    last_chunk = max((point.chunk for point in history), default=0) or 10
    top, unit, size = _axis_top(max((point.nbytes for point in history), default=0))
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    corners = [
        (_LEFT + across * point.chunk / last_chunk, _TOP + down * (1 - point.nbytes / (top * size)))
        for point in history
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    marks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="vlm-grid"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g} {unit}</text>'
        for value, y in ((part * top / 2, _TOP + down * (1 - part / 2)) for part in (0, 1, 2))
    )
    dot = f'<circle cx="{corners[-1][0]:.1f}" cy="{corners[-1][1]:.1f}" r="3.5"/>' if corners else ""
    return (
        f'<svg class="vlm-plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" data-points="{len(history)}" '
        f'aria-label="Size of the KV cache over the chunks">{marks}<polyline points="{line}"/>{dot}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 10}">0</text>'
        f'<text x="{_LEFT + across / 2}" y="{_HEIGHT - 10}" text-anchor="middle">chunks</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">{last_chunk}</text></svg>'
    )


def _axis_top(nbytes: int) -> tuple[float, str, int]:
    """Return a round number of units at or above a size, the unit, and its bytes."""
    unit, size = next(((u, s) for u, s in (("GB", 10**9), ("MB", 10**6)) if nbytes >= s), ("kB", 10**3))
    power = 1.0
    while power * size * 10 <= nbytes:
        power *= 10
    top = next((factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power * size >= nbytes), 10 * power)
    return top, unit, size
