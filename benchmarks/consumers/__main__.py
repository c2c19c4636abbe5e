"""`python -m benchmarks.consumers`: measure what reads features, training and evaluation, and write it down."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.consumers import evaluation, loading, training
from benchmarks.consumers.scale import QUICK, Scale
from benchmarks.rows_command import RowsCommand
from benchmarks.store.report import Row

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "load": loading.measure,
    "train": training.measure,
    "evaluate": evaluation.measure,
}
PACKAGES = ("torch", "transformers", "av", "numpy", "mosaicml-streaming")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, with one torch thread."""
    return RowsCommand("consumers", __doc__, ROWS, PACKAGES, Scale(), QUICK).run(arguments)


if __name__ == "__main__":
    sys.exit(main())
