"""`python -m benchmarks.store`: measure the store's rows of the targets in one run, print them, write them down."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.store import full_store, large_reads, machine, publishing, small_reads
from benchmarks.store.document import record
from benchmarks.store.plot import draw
from benchmarks.store.report import Row, table, to_json
from benchmarks.store.scale import QUICK, Scale

# Rows that share one costly preparation are measured by one function.
GROUPS: dict[Callable[[Path, Scale], list[Row]], tuple[str, ...]] = {
    small_reads.measure: ("read-small",),
    large_reads.measure: ("read-large", "read-frames"),
    publishing.measure: ("publish",),
    full_store.measure: ("publish-full", "list", "evict"),
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 even where a target is missed, because a figure is no failure of the run."""
    options = _parser().parse_args(arguments)
    scale = QUICK if options.quick else Scale()
    if options.entries is not None:
        scale = replace(scale, entries=options.entries)
    folder = Path(tempfile.mkdtemp(prefix="bench-store-", dir=options.folder))
    try:
        rows = _measured(folder, scale, set(options.only or ROWS))
        facts = machine.described(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    fields = to_json(rows, facts, {"quick": options.quick, **asdict(scale)})
    if options.json is not None:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    if options.plot is not None:
        draw(rows, options.plot)
    if options.record:
        record(fields, Path(__file__).parents[2] / "docs")
    return 0


def _measured(folder: Path, scale: Scale, wanted: set[str]) -> list[Row]:
    rows: list[Row] = []
    for measure, names in GROUPS.items():
        if wanted.isdisjoint(names):
            continue
        print(f"measuring {', '.join(names)} ...", file=sys.stderr, flush=True)
        place = folder / names[0]
        place.mkdir()
        found = measure(place, scale)
        shutil.rmtree(place)  # at once: a million files of one row would slow the next one down
        for row in found:
            if row.id in wanted:
                print(table(row), end="\n\n", flush=True)
                rows.append(row)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store",
        description=__doc__,
        epilog="example: python -m benchmarks.store --only publish --json publish.json",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}")
    parser.add_argument("--entries", type=int, metavar="N", help="entries of the full store (default 1,000,000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="measure on this folder's disk; needs 8 GB for all")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios, as .svg or .png")
    parser.add_argument("--record", action="store_true", help="rewrite the figures in docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
