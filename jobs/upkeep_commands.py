"""The commands that look after a store: verify, prune, pin and clear."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.text import Text

from cache_store import EntryInfo, FeatureStore, PruneReport, VerifyReport
from cache_store.reports import VerifyProgress
from jobs.printing import notes, open_store, print_json, printable, results, table
from jobs.sizes import format_age, format_seconds, format_size
from jobs.stats_view import MOST_ROWS, pins_table
from pipeline.errors import BuildRefused

_MOST_NAMES = 20


def verify(args: argparse.Namespace) -> int:
    """Check every feature; returns 1 if something is wrong, also after a repair."""
    if args.seed is not None and args.sample is None:
        raise BuildRefused("--seed draws a sample again; say how many features it had: --sample N")
    started = time.monotonic()
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with (
        open_store(args.store) as store,
        ProgressBars(*columns, TimeRemainingColumn(), console=notes(), transient=True) as bars,
    ):
        bar = bars.add_task("checking", total=None, note="")

        def show(told: VerifyProgress) -> None:
            note = format_size(told.bytes) + (f", {told.problems:,} problems" if told.problems else "")
            bars.update(bar, completed=told.files, total=told.total_files, note=note)

        found = store.verify(show, repair=args.repair, workers=args.workers, sample=args.sample, seed=args.seed)
    if args.json:
        print_json(found.to_json())
    else:
        _print_verified(found, store.location, seconds=time.monotonic() - started)
    return 1 if found.problems else 0


def _print_verified(found: VerifyReport, location: str, *, seconds: float) -> None:
    console = results()
    for problem in found.problems:
        moved = f"; set aside as {problem.quarantined_to}" if problem.quarantined_to else ""
        line = Text.assemble(("problem", "bold red"), f" {printable(problem.path)}: {printable(problem.reason)}{moved}")
        console.print(line, soft_wrap=True)
    if found.not_features:
        console.print(f"not features, and left alone: {len(found.not_features):,} files", style="bold", soft_wrap=True)
        for name in found.not_features[:_MOST_NAMES]:
            console.print(Text(f"  {printable(name)}"), soft_wrap=True)
        if len(found.not_features) > _MOST_NAMES:
            console.print(f"  and {len(found.not_features) - _MOST_NAMES:,} more (--json)")
    drawn = "" if found.seed is None else f"a sample drawn by --seed {found.seed}: "
    console.print(
        f"{drawn}{found.checked:,} features with {format_size(found.bytes)} checked in {format_seconds(seconds)}, "
        f"{len(found.problems):,} problems",
        soft_wrap=True,
    )
    set_aside = sum(problem.quarantined_to is not None for problem in found.problems)
    if set_aside:
        console.print(
            f"{set_aside:,} damaged files are in {location}/.vlm-cache/quarantine; run the build command again, "
            "which makes what is missing and skips the rest",
            soft_wrap=True,
        )
    elif found.problems and found.repaired:
        console.print("nothing of that is a file that could be set aside", soft_wrap=True)
    elif found.problems:
        console.print(
            "nothing was changed; --repair sets damaged files aside, and the next build makes them again",
            soft_wrap=True,
        )


def prune(args: argparse.Namespace) -> int:
    """Delete what the options select; at least one of them is needed."""
    conditions = (args.dataset, args.older_than, args.unused_for, args.model, args.recipe, args.down_to)
    if all(condition is None for condition in conditions):
        raise BuildRefused(
            "say what to prune: --dataset, --model, --recipe, --older-than, --unused-for or --down-to (all: `clear`)"
        )
    with open_store(args.store) as store:
        pruned = store.prune(
            datasets=args.dataset,
            older_than_s=args.older_than,
            unused_for_s=args.unused_for,
            model=args.model,
            recipe_fingerprint=args.recipe,
            down_to_bytes=args.down_to,
            keep_pinned=not args.pinned_too,
            dry_run=args.dry_run,
        )
    if args.json:
        print_json(pruned.to_json())
    else:
        _print_pruned(pruned)
    return 0


def _print_pruned(pruned: PruneReport) -> None:
    console = results()
    rows = _by_dataset(pruned.deleted)
    drawn = table(("data set", "name"), ("features", "right"), ("size", "right"), ("last used", "right"))
    now_s = time.time()
    for name, (entries, size, last_use) in rows[:MOST_ROWS]:
        drawn.add_row(
            Text(printable(name)), f"{entries:,}", format_size(size), f"{format_age(max(0.0, now_s - last_use))}"
        )
    if rows:
        console.print(drawn)
    if len(rows) > MOST_ROWS:
        console.print(f"and {len(rows) - MOST_ROWS:,} more data sets (--json names every file)\n")
    verb = "would delete" if pruned.dry_run else "deleted"
    console.print(f"{verb} {len(pruned.deleted):,} features, {format_size(pruned.bytes)}")
    if pruned.pinned:
        kept = "would keep" if pruned.dry_run else "kept"
        console.print(f"{kept} {pruned.pinned:,} features that are pinned (--pinned-too deletes them, `pin --list`)")


def _by_dataset(entries: Iterable[EntryInfo]) -> list[tuple[str, tuple[int, int, float]]]:
    """Features, bytes and last use by data set, the largest first."""
    sums: dict[str, tuple[int, int, float]] = {}
    for entry in entries:
        count, size, last_use = sums.get(entry.dataset, (0, 0, 0.0))
        sums[entry.dataset] = (count + 1, size + entry.bytes, max(last_use, entry.last_use))
    return sorted(sums.items(), key=lambda item: (-item[1][1], item[0]))


def pin(args: argparse.Namespace) -> int:
    """Keep data sets from eviction, take pins back, or list them."""
    asked = (args.dataset is not None, args.remove is not None, args.list)
    if sum(asked) != 1:
        raise BuildRefused("say one of: --dataset NAME (pin it), --remove ID_OR_DATASET, --list")
    if args.dataset is None and (args.for_s is not None or args.note):
        raise BuildRefused("--for and --note belong to --dataset")
    with open_store(args.store) as store:
        if args.list:
            return _list_pins(store, as_json=args.json)
        if args.remove is not None:
            return _remove_pins(store, args.remove, as_json=args.json)
        pinned = store.pin(args.dataset, for_s=args.for_s, note=args.note)
    if args.json:
        print_json({"id": pinned.id, "datasets": pinned.datasets, "expires": pinned.expires, "note": pinned.note})
    else:
        until = "until it is removed" if args.for_s is None else f"for {format_age(args.for_s)}"
        names = ", ".join(printable(name) for name in pinned.datasets)
        print(f"pinned {names} {until}; take it back with: vlm-cache pin --store {args.store} --remove {pinned.id[:8]}")
    return 0


def _list_pins(store: FeatureStore, *, as_json: bool) -> int:
    pins = store.pins()
    if as_json:
        print_json([vars(pinned) for pinned in pins])
    elif pins:
        results().print(pins_table(pins))
    else:
        print("nothing is pinned")
    return 0


def _remove_pins(store: FeatureStore, which: str, *, as_json: bool) -> int:
    try:
        removed = store.unpin(which)
    except ValueError as exc:
        raise BuildRefused(str(exc)) from exc
    if removed == 0:
        raise BuildRefused(f"no pin has the id or the data set {which!r}; `vlm-cache pin --list` names them")
    if as_json:
        print_json({"removed": removed})
    else:
        print(f"removed {removed} {'pin' if removed == 1 else 'pins'}")
    return 0


def clear(args: argparse.Namespace) -> int:
    """Delete every feature, if `--yes` says so; without it nothing is deleted and the status is 2."""
    with open_store(args.store) as store:
        if not args.yes:
            found = store.stats()
            pins = f", some of them pinned ({len(found.pins):,} pins)" if found.pins else ""
            raise BuildRefused(
                f"{args.store} holds {found.entries:,} features with {format_size(found.bytes)}{pins}; "
                "pass --yes to delete them all"
            )
        deleted = store.clear()
    if args.json:
        print_json(deleted.to_json())
    else:
        print(f"deleted {len(deleted.deleted):,} features, {format_size(deleted.bytes)}, from {args.store}")
    return 0
