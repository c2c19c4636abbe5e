"""`python -m benchmarks.build`: measure the builds' rows of the targets in one run, print them, write them down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.build import decode_bound, encoder_bound, lanes, memory, scheduling
from benchmarks.build.scale import QUICK, Scale
from benchmarks.rows_command import RowsCommand
from benchmarks.store.report import Row

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "encoder-bound": encoder_bound.measure,
    "decode-bound": decode_bound.measure,
    "scheduling": scheduling.measure,
    "lanes": lanes.measure,
    "driver-memory": memory.measure,
}
PACKAGES = ("ray", "torch", "transformers", "av", "numpy")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, with as many torch threads as the build's encoder has: one."""
    return RowsCommand("build", __doc__, ROWS, PACKAGES, Scale(), QUICK).run(arguments)


if __name__ == "__main__":
    sys.exit(main())
