"""`python -m benchmarks.build`: measure the builds' rows of the targets in one run, print them, write them down."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.build import decode_bound, encoder_bound, lanes, memory, scheduling
from benchmarks.build.scale import QUICK, Scale
from benchmarks.store import machine
from benchmarks.store.document import record
from benchmarks.store.report import Row, table, to_json

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "encoder-bound": encoder_bound.measure,
    "decode-bound": decode_bound.measure,
    "scheduling": scheduling.measure,
    "lanes": lanes.measure,
    "driver-memory": memory.measure,
}
PACKAGES = ("ray", "torch", "transformers", "av", "numpy")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 even where a target is missed, because a figure is no failure of the run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.record and options.only:
        parser.error("--record writes the whole page; run it without --only")
    scale = QUICK if options.quick else Scale()
    torch.set_num_threads(1)  # as many as the build's encoder has
    folder = Path(tempfile.mkdtemp(prefix="bench-build-", dir=options.folder)).resolve()
    try:
        facts = machine.described(folder, PACKAGES)
        rows = _measured(folder, scale, options.only or list(ROWS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    fields = to_json(rows, facts, {"quick": options.quick, **asdict(scale)})
    if options.json is not None:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    if options.record:
        record(fields, Path(__file__).parents[2] / "docs", name="build")
    return 0


def _measured(folder: Path, scale: Scale, wanted: list[str]) -> list[Row]:
    rows: list[Row] = []
    for name, measure in ROWS.items():
        if name not in wanted:
            continue
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        place = folder / name
        place.mkdir()
        found = measure(place, scale)
        rows += found
        for row in found:
            print(table(row), end="\n\n", flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build",
        description=__doc__,
        epilog="example: python -m benchmarks.build --only scheduling --json scheduling.json",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="put videos and stores on this folder's disk")
    parser.add_argument("--record", action="store_true", help="rewrite the figures in docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
