"""`python -m benchmarks.consumers`: measure what reads features, training and evaluation, and write it down."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.consumers import evaluation, loading, training
from benchmarks.consumers.scale import QUICK, Scale
from benchmarks.store.report import Row

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "load": loading.measure,
    "train": training.measure,
    "evaluate": evaluation.measure,
}
PACKAGES = ("torch", "transformers", "av", "numpy", "mosaicml-streaming")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; see `benchmarks.command`."""
    return command.run("consumers", __doc__, ROWS, scales=(Scale(), QUICK), packages=PACKAGES, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
