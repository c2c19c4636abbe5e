"""`python -m benchmarks.store`: measure the store's rows of the targets in one run, print them, write them down."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.store import eviction, large_reads, listing, machine, publishing, publishing_full, small_reads
from benchmarks.store.document import record
from benchmarks.store.plot import draw
from benchmarks.store.report import Row, table, to_json
from benchmarks.store.scale import QUICK, Scale


@dataclass(frozen=True)
class _Group:
    """Rows that one function measures, and the folder in which it does; groups of one folder share what they made."""

    rows: tuple[str, ...]
    measure: Callable[[Path, Scale], list[Row]]
    folder: str


# Writers first and deletions last: for minutes after a deletion ext4 makes new files ten times as slowly.
GROUPS = (
    _Group(("publish",), publishing.measure, "publish"),
    _Group(("read-small",), small_reads.measure, "read-small"),
    _Group(("read-large", "read-frames"), large_reads.measure, "read-large"),
    _Group(("publish-full",), publishing_full.measure, "full"),
    _Group(("list", "list-memory"), listing.measure, "full"),
    _Group(("evict",), eviction.measure, "full"),
)
ROWS = tuple(row for group in GROUPS for row in group.rows)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 even where a target is missed, because a figure is no failure of the run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.record and options.only:
        parser.error("--record writes the whole page; run it without --only")
    scale = QUICK if options.quick else Scale()
    if options.entries is not None:
        scale = replace(scale, entries=options.entries)
    torch.set_num_threads(1)  # a copy on two cores beside a read on one would be no comparison
    folder = Path(tempfile.mkdtemp(prefix="bench-store-", dir=options.folder)).resolve()
    try:
        facts = machine.described(folder)
        rows = _measured(folder, scale, set(options.only or ROWS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    fields = to_json(rows, facts, {"quick": options.quick, **asdict(scale)})
    if options.json is not None:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    if options.plot is not None:
        draw(rows, options.plot)
    if options.record:
        record(fields, Path(__file__).parents[2] / "docs", name="store")
    return 0


def _measured(folder: Path, scale: Scale, wanted: set[str]) -> list[Row]:
    rows: list[Row] = []
    for group in GROUPS:
        if wanted.isdisjoint(group.rows):
            continue
        print(f"measuring {', '.join(group.rows)} ...", file=sys.stderr, flush=True)
        place = folder / group.folder
        place.mkdir(exist_ok=True)
        found = [row for row in group.measure(place, scale) if row.id in wanted]
        rows += found
        for row in found:
            print(table(row), end="\n\n", flush=True)
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
