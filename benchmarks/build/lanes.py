"""Row `lanes`: 1 to 8 lanes with a simulated device each, against as many times one lane."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks.build.encoders import NoOpSpec
from benchmarks.build.pace import build_pace, cluster
from benchmarks.build.samples import EmptySteps
from benchmarks.build.scale import Scale
from benchmarks.store.report import Line, Row
from benchmarks.store.timing import median

LEAST_SHARE = 0.95
MANY = 100_000  # more units than any window takes


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row: units a second, and as a ratio their share of N times one lane's of the same round."""
    rates: dict[int, list[float]] = defaultdict(list)
    spec = NoOpSpec(sleep_s=scale.sleep_s)
    with cluster():
        for number in range(scale.rounds):
            for lanes in scale.lanes:
                root = folder / f"store {number} {lanes}"
                pace = build_pace(EmptySteps(MANY), spec, root, scale, lanes=lanes, decoders=1)
                rates[lanes].append(pace.units_per_s)
    return [
        Row(
            "lanes",
            f"{min(scale.lanes)} to {max(scale.lanes)} lanes against as many times one lane",
            "units/s",
            [_line(lanes, rates) for lanes in scale.lanes],
            [
                f"Each lane has one decoder and an encoder that sleeps {scale.sleep_s * 1e3:g} ms for each unit, "
                f"which is at most {1 / scale.sleep_s:g} units/s; decoding costs nothing, and every unit is published. "
                "All processes share the cores of this machine.",
            ],
        )
    ]


def _line(lanes: int, rates: dict[int, list[float]]) -> Line:
    shares = [rate / (lanes * one) for rate, one in zip(rates[lanes], rates[1], strict=True)]
    least = LEAST_SHARE if lanes > 1 else None
    name = "1 lane" if lanes == 1 else f"build on {lanes} lanes"
    return Line(name, median(rates[lanes]), median(shares), min(shares), max(shares), least_ratio=least)
