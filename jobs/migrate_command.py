"""`vlm-cache migrate`: brings caches of earlier scripts under today's names, and tells what may be deleted then."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from cache_store import FeatureStore, StepKey, StoreFull, StoreWriteError, prompt_hash
from cache_store.migration import migrate as migrated
from cache_store.migration import refuse_packed
from cache_store.migration_names import BadLine, read_names
from cache_store.migration_sources import Move, Moved, moves_of_aliases, moves_of_names, moves_to_flat, moves_to_tree
from cache_store.naming import relative_path
from jobs.copy_command import copy_store
from jobs.printing import notes, print_json, printable, results, table
from jobs.sizes import format_size
from pipeline.errors import BuildRefused

_SHOWN = 20


def migrate(args: argparse.Namespace) -> int:
    """Copy what the options select; 1 if a file was damaged, in conflict or could not say what it is, or a line bad.

    Also 1 if the list of what may be deleted could not be written.
    """
    if not (args.names or args.to or args.aliases):
        return copy_store(args)
    source = args.source or args.store
    if isinstance(source, str) or isinstance(args.store, str):
        raise BuildRefused("--names, --to and --aliases are for folders; migrate there, then copy the store to its URL")
    if args.dataset:
        raise BuildRefused("--dataset belongs to copying a store, without --names, --to and --aliases")
    if not source.is_dir() or not os.access(source, os.R_OK | os.X_OK):
        raise BuildRefused(f"{source} is no folder that can be read; --from names the old cache")
    recipe = _read_json(args.recipe) if args.recipe else None
    refuse_packed(source.absolute())
    found_moves, bad_lines = _moves(args, source)
    moves = list(found_moves)
    found: list[Moved] = []
    stopped: str | None = None
    with ExitStack() as stack:
        is_new = args.dry_run and not args.store.exists()  # a dry run makes nothing, not even the store's folder
        root = stack.enter_context(tempfile.TemporaryDirectory()) if is_new else args.store
        store = stack.enter_context(FeatureStore(root))
        bars = stack.enter_context(Progress(console=notes(), transient=True))
        bar = bars.add_task("copying", total=len(moves))
        try:
            for moved in migrated(store, moves, recipe=recipe, dry_run=args.dry_run):
                found.append(moved)
                bars.advance(bar)
        except (StoreFull, StoreWriteError) as exc:
            stopped = str(exc)
    not_started = len(moves) - len(found)
    movable = [one.source for one in found if one.outcome in ("copied", "there")]
    is_listed = args.dry_run or args.write_list is None or _write_list(args.write_list, movable)
    if args.json:
        whole = _as_json(found, dry_run=args.dry_run)
        lines = [bad._asdict() for bad in bad_lines]
        print_json({**whole, "bad_lines": lines, "not_started": not_started, "stopped": stopped})
    else:
        for bad in bad_lines:
            print(f"{printable(str(args.names))}: line {bad.line}: {printable(bad.reason)}")
        _print(found, args, is_listed=is_listed)
        if stopped:
            results().print(f"stopped, {not_started:,} not copied: {stopped}", markup=False)
    is_failed = any(one.outcome in ("damaged", "conflict", "skipped") for one in found)
    return 1 if stopped or bad_lines or is_failed or not is_listed else 0


def _write_list(path: Path, sources: list[str]) -> bool:
    try:
        path.write_text("".join(f"{source}\n" for source in sources), errors="surrogateescape")
    except OSError as exc:
        told = f"--write-list {path} is not written to its end: {exc.strerror or exc}; delete nothing by it"
        notes().print(printable(told), markup=False, soft_wrap=True)
        return False
    return True


def _moves(args: argparse.Namespace, source: Path) -> tuple[Iterable[Move | Moved], list[BadLine]]:
    if args.names:
        try:
            names, bad_lines = read_names(args.names)
        except OSError as exc:
            raise BuildRefused(f"--names {args.names} cannot be read: {exc.strerror or exc}") from exc
        return moves_of_names(source, names), bad_lines
    if args.aliases:
        return moves_of_aliases(source), []
    wanted = args.prompt_hash if args.instruction is None else prompt_hash(args.instruction)
    relative_path(StepKey("any", 0, wanted))  # refuses what is no prompt hash
    moves_to = moves_to_flat if args.to == "flat" else moves_to_tree
    return moves_to(source, prompt_hash=wanted), []


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise BuildRefused(f"--recipe {path} is no JSON file: {exc}") from exc


def _as_json(found: list[Moved], *, dry_run: bool) -> dict[str, Any]:
    counts = Counter(one.outcome for one in found)
    return {
        "dry_run": dry_run,
        **{outcome: counts[outcome] for outcome in ("copied", "there", "conflict", "damaged", "skipped")},
        "bytes": sum(one.bytes for one in found),
        "files": [asdict(one) for one in found],
    }


def _print(found: list[Moved], args: argparse.Namespace, *, is_listed: bool) -> None:
    console = results()
    bad = [one for one in found if one.outcome in ("damaged", "conflict", "skipped")]
    shown = (bad + [one for one in found if args.dry_run and one.outcome == "copied"])[:_SHOWN]
    if shown:
        rows = table(("outcome", "left"), ("file", "name"), ("to", "name"), ("reason", "name"))
        for one in shown:
            rows.add_row(one.outcome, printable(one.source), printable(one.target or "-"), printable(one.reason or ""))
        console.print(rows)
    if len(bad) > _SHOWN:
        console.print(f"and {len(bad) - _SHOWN:,} more; --json names all")
    counts = Counter(one.outcome for one in found)
    verb = "would be copied" if args.dry_run else "copied"
    console.print(
        f"{counts['copied']:,} {verb} ({format_size(sum(one.bytes for one in found))}), {counts['there']:,} already "
        f"there, {counts['conflict']:,} in conflict, {counts['damaged']:,} damaged, {counts['skipped']:,} skipped"
    )
    if not args.dry_run and counts["copied"] + counts["there"]:
        if args.write_list and is_listed:
            console.print(f"what may be deleted now: xargs -d '\\n' rm < {args.write_list}")
        elif not args.write_list:
            console.print("the old files are untouched; --write-list FILE names those that may be deleted now")
