"""Row `driver-memory`: the most memory that the driver of a build ever holds, for a short plan and for a long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build.scale import Scale
from benchmarks.store.child import run_alone
from benchmarks.store.report import Line, Row


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row.

    Raises:
        RuntimeError: a build did not build everything.
    """
    lines = []
    for units in scale.memory_units:
        finished = run_alone("driver", folder / f"store {units}", module="benchmarks.build.cases", units=units)
        if finished.found["done"] != units:
            raise RuntimeError(f"only {finished.found['done']:,} of {units:,} units were built")
        lines.append(Line(f"build of {units:,} units", finished.peak_bytes / 1e6))
    remark = "Python, torch and Ray's client in it; the units cost nothing, and each is published."
    return [Row("driver-memory", "peak memory of the driver", "MB", lines, [remark])]
