"""`python -m benchmarks.packed`: measure packed features and remote roots beside other formats, and write it down."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.packed import loading, million, rates, reading, remote
from benchmarks.packed.scale import QUICK, Scale
from benchmarks.rows_command import RowsCommand
from benchmarks.store.report import Row

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "pack": rates.measure,
    "read": reading.measure,
    "load": loading.measure,
    "remote": remote.measure,
    "million": million.measure,
}
PACKAGES = ("torch", "numpy", "pyarrow", "mosaicml-streaming", "pylance", "webdataset", "s3fs", "boto3", "moto")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, with one torch thread."""
    rows = RowsCommand(
        name="packed",
        about=__doc__,
        rows=ROWS,
        packages=PACKAGES,
        full=Scale(),
        quick=QUICK,
        add_options=_add_options,
        adapted=_adapted,
        target="pack",
    )
    return rows.run(arguments)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entries", type=int, metavar="N", help="entries of row `million` (default 1,000,000)")


def _adapted(scale: Scale, options: argparse.Namespace) -> Scale:
    return scale if options.entries is None else replace(scale, entries=options.entries)


if __name__ == "__main__":
    sys.exit(main())
