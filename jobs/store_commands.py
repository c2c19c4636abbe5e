"""The commands that look after a store: stats, ls, show, verify, prune, clear."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as ProgressBars
from rich.table import Table

from cache_store import FeatureStore, describe
from jobs.sizes import format_seconds, format_size
from pipeline.errors import BuildRefused


def _open(root: Path) -> FeatureStore:
    """Open a store that is there: looking at one must not make one."""
    if not root.is_dir():
        raise BuildRefused(f"{root} is no folder; --store names the root of a feature store")
    return FeatureStore(root)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    return table


def stats(args: argparse.Namespace) -> int:
    """Print what the store holds."""
    with _open(args.store) as store:
        found = store.stats().to_json()
    if args.json:
        _print_json(found)
        return 0
    table = _table(("data set", "left"), ("features", "right"), ("size", "right"))
    for name, dataset in found["datasets"].items():
        table.add_row(escape(name), f"{dataset['entries']:,}", format_size(dataset["bytes"]))
    console = Console()
    console.print(table)
    limit = found["limit_bytes"]
    share = f" of {format_size(limit)} ({100 * found['bytes'] / limit:.1f} %)" if limit else ", no limit"
    reads = found["hits"] + found["misses"]
    rate = f", hit rate {100 * found['hits'] / reads:.1f} %" if reads else ""
    console.print(f"{found['entries']:,} features, {format_size(found['bytes'])}{share}", highlight=False)
    console.print(
        f"{found['hits']:,} hits, {found['misses']:,} misses{rate}, {found['evictions']:,} evictions",
        highlight=False,
    )
    return 0


def ls(args: argparse.Namespace) -> int:
    """List the store's features, one line each."""
    with _open(args.store) as store:
        entries = [entry for entry in store.entries() if args.dataset in (None, entry.dataset)]
    if args.json:
        _print_json([entry.to_json() for entry in entries])
        return 0
    table = _table(("file", "left"), ("size", "right"), ("recipe", "left"), ("written", "left"))
    for entry in entries:
        written = datetime.fromtimestamp(entry.mtime).isoformat(sep=" ", timespec="seconds")
        table.add_row(escape(entry.name), format_size(entry.bytes), entry.recipe_fingerprint8 or "-", written)
    Console(soft_wrap=True).print(table)
    return 0


def show(args: argparse.Namespace) -> int:
    """Print what one file says of itself."""
    if not args.file.is_file():
        raise BuildRefused(f"{args.file} is no file")
    info = describe(args.file).to_json()
    if args.json:
        _print_json(info)
        return 0
    console = Console(soft_wrap=True)
    console.print(f"[bold]{escape(str(args.file))}[/]  {format_size(info['bytes'])}", highlight=False)
    for tensor in info["tensors"]:
        console.print(f"  {escape(tensor['path'] or 'tensor')}: {tensor['dtype']} {tensor['shape']}", highlight=False)
    for part in ("key", "recipe", "provenance"):
        if info[part] is None:
            console.print(f"[bold]{part}[/]: none (written by a plain torch.save)")
            continue
        fingerprint = f" {info['recipe_fingerprint']}" if part == "recipe" else ""
        console.print(f"[bold]{part}[/]{fingerprint}", highlight=False)
        console.print_json(json.dumps(_short_lists(info[part]), ensure_ascii=False))
    return 0


def _short_lists(value: Any) -> Any:
    """Cut long lists of numbers, such as 128 frame indices, for the eye; `--json` has them whole."""
    if isinstance(value, dict):
        return {name: _short_lists(inner) for name, inner in value.items()}
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(str, value[:3]))}, ... {value[-1]}] ({len(value)} values)"
    return value


def verify(args: argparse.Namespace) -> int:
    """Check every feature; returns 1 if one is damaged."""
    started = time.monotonic()
    with _open(args.store) as store, ProgressBars(console=Console(file=sys.stderr), transient=True) as bars:
        bar = bars.add_task("checking", total=None)
        found = store.verify(
            progress=lambda told: bars.update(bar, completed=told.files, total=told.total_files)
        ).to_json()
    if args.json:
        _print_json(found)
    else:
        console = Console(soft_wrap=True)
        for problem in found["problems"]:
            console.print(f"[red]damaged[/] {escape(problem['path'])}: {escape(problem['reason'])}")
        console.print(
            f"{found['checked']:,} features checked in {format_seconds(time.monotonic() - started)}, "
            f"{len(found['problems'])} damaged",
            highlight=False,
        )
    return 1 if found["problems"] else 0


def prune(args: argparse.Namespace) -> int:
    """Delete what the options select; at least one of them is needed."""
    if not args.dataset and args.older_than is None and args.unused_for is None and args.down_to is None:
        raise BuildRefused("say what to prune: --dataset, --older-than, --unused-for or --down-to (all: `clear`)")
    with _open(args.store) as store:
        pruned = store.prune(
            datasets=args.dataset,
            older_than_s=args.older_than,
            unused_for_s=args.unused_for,
            down_to_bytes=args.down_to,
            dry_run=args.dry_run,
        )
    if args.json:
        _print_json(pruned.to_json())
        return 0
    verb = "would delete" if args.dry_run else "deleted"
    for entry in pruned.deleted if args.dry_run else []:
        print(f"{verb} {entry.name}  {format_size(entry.bytes)}")
    print(f"{verb} {len(pruned.deleted):,} features, {format_size(pruned.bytes)}")
    return 0


def clear(args: argparse.Namespace) -> int:
    """Delete every feature, if `--yes` says so; without it nothing is deleted and the status is 2."""
    with _open(args.store) as store:
        entries = store.stats().entries
        if not args.yes:
            raise BuildRefused(f"{args.store} holds {entries:,} features; pass --yes to delete them all")
        deleted = store.clear()
    if args.json:
        _print_json(deleted.to_json())
    else:
        print(f"deleted {len(deleted.deleted):,} features, {format_size(deleted.bytes)}, from {args.store}")
    return 0
