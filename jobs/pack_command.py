"""`vlm-cache pack` and `vlm-cache unpack`: small loose files into shards, and back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cache_store import FeatureStore
from cache_store.packing import PackProgress, PackReport
from jobs.printing import notes, open_store, print_json, printable, results
from jobs.sizes import format_seconds, format_size

_MOST_NAMES = 20


def pack(args: argparse.Namespace) -> int:
    """Pack, or with `--unpack` the other way round; returns 1 if some files had to be left where they are."""
    return unpack(args) if args.unpack else _run(args, lambda store: store.pack, "packing", "packed")


def unpack(args: argparse.Namespace) -> int:
    """Write packed features as files again; returns 1 if some could not be."""
    return _run(args, lambda store: store.unpack, "unpacking", "unpacked")


def _run(
    args: argparse.Namespace, work: Callable[[FeatureStore], Callable[..., PackReport]], doing: str, done: str
) -> int:
    started = time.monotonic()
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with (
        open_store(args.store) as store,
        Progress(*columns, TimeRemainingColumn(), console=notes(), transient=True) as bars,
    ):
        bar = bars.add_task(doing, total=None, note="")

        def show(told: PackProgress) -> None:
            note = format_size(told.bytes) + (f", {told.problems:,} problems" if told.problems else "")
            bars.update(bar, completed=told.files, total=told.total_files, note=note)

        found = work(store)(show, datasets=args.dataset, keep=args.keep, dry_run=args.dry_run)
    if args.json:
        print_json(found.to_json())
    else:
        _print(found, f"would be {done}" if args.dry_run else done, seconds=time.monotonic() - started)
    return 1 if found.problems else 0


def _print(found: PackReport, done: str, *, seconds: float) -> None:
    console = results()
    for problem in found.problems[:_MOST_NAMES]:
        line = Text.assemble(("left", "bold red"), f" {printable(problem.path)}: {printable(problem.reason)}")
        console.print(line, soft_wrap=True)
    if len(found.problems) > _MOST_NAMES:
        console.print(f"and {len(found.problems) - _MOST_NAMES:,} more (--json)")
    freed = f", {format_size(found.freed_bytes)} freed in shards" if found.freed_bytes else ""
    merged = f", {found.merged:,} small shards merged" if found.merged else ""
    console.print(
        f"{found.files:,} features with {format_size(found.bytes)} {done} ({found.shards:,} shards) "
        f"in {format_seconds(seconds)}{freed}{merged}",
        soft_wrap=True,
    )
    if found.problems:
        console.print("`vlm-cache verify --repair` sets damaged files aside", soft_wrap=True)
