"""The command line that the benchmarks of builds and of consumers share: measure rows, print them, write them down."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.store import machine
from benchmarks.store.document import record
from benchmarks.store.report import Row, table, to_json

S = TypeVar("S")


def run(
    name: str,
    description: str | None,
    rows: Mapping[str, Callable[[Path, S], list[Row]]],
    *,
    scales: tuple[S, S],
    packages: Sequence[str],
    arguments: Sequence[str] | None,
) -> int:
    """Measure what was asked for of `rows`, each in a folder of its own; `scales` are the full one and `--quick`'s.

    Returns:
        0 even where a target is missed, because a figure is no failure of the run.
    """
    parser = _parser(name, description, list(rows))
    options = parser.parse_args(arguments)
    if options.record and options.only:
        parser.error("--record writes the whole page; run it without --only")
    scale: Any = scales[1] if options.quick else scales[0]
    torch.set_num_threads(1)  # what is compared would use both cores, or one, by chance
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=options.folder)).resolve()
    try:
        facts = machine.described(folder, packages)
        measured = _measured(folder, scale, rows, options.only or list(rows))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    fields = to_json(measured, facts, {"quick": options.quick, **asdict(scale)})
    if options.json is not None:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    if options.record:
        record(fields, Path(__file__).parents[1] / "docs", name=name)
    return 0


def _measured(
    folder: Path, scale: S, rows: Mapping[str, Callable[[Path, S], list[Row]]], wanted: Sequence[str]
) -> list[Row]:
    measured: list[Row] = []
    for name, measure in rows.items():
        if name not in wanted:
            continue
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        place = folder / name
        place.mkdir()
        found = measure(place, scale)
        measured += found
        for row in found:
            print(table(row), end="\n\n", flush=True)
    return measured


def _parser(name: str, description: str | None, rows: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=f"example: python -m benchmarks.{name} --only {rows[0]} --json {rows[0]}.json",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=rows, metavar="ROW", help=f"one of {', '.join(rows)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="put what is measured on this folder's disk")
    parser.add_argument("--record", action="store_true", help="rewrite the figures in docs/benchmarks.md")
    return parser
