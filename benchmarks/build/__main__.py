"""`python -m benchmarks.build`: measure the builds' rows of the targets in one run, print them, write them down."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.build import decode_bound, encoder_bound, lanes, memory, scheduling
from benchmarks.build.scale import QUICK, Scale
from benchmarks.store.report import Row

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "encoder-bound": encoder_bound.measure,
    "decode-bound": decode_bound.measure,
    "scheduling": scheduling.measure,
    "lanes": lanes.measure,
    "driver-memory": memory.measure,
}
PACKAGES = ("ray", "torch", "transformers", "av", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; see `benchmarks.command`."""
    return command.run("build", __doc__, ROWS, scales=(Scale(), QUICK), packages=PACKAGES, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
