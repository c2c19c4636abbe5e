"""`vlm-cache migrate --from STORE --store STORE`: copies one store into another, in folders, packed or behind URLs."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cache_store import FeatureStore, StoreFull, StoreReadError, StoreWriteError
from cache_store.copying import Copied, copy
from jobs.printing import notes, open_store, print_json, printable, results
from jobs.sizes import format_size
from pipeline.errors import BuildRefused

_SHOWN = 20
_OF_OLD_CACHES = ("prompt_hash", "instruction", "recipe", "write_list")
_OUTCOMES = ("copied", "there", "conflict", "damaged", "gone")


def copy_store(args: argparse.Namespace) -> int:
    """Copy what the target lacks; 1 if something was damaged or in conflict, or a store failed on the way."""
    _check(args)
    counts: Counter[str] = Counter()
    problems: list[Copied] = []
    copied_bytes, stopped = 0, None
    columns = (TextColumn("copying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with ExitStack() as stack:
        source = stack.enter_context(open_store(args.source))
        target = stack.enter_context(FeatureStore(args.store))
        bars = stack.enter_context(Progress(*columns, TimeRemainingColumn(), console=notes(), transient=True))
        bar = bars.add_task("copying", total=source.size()[0] if args.dataset is None else None, note="")
        try:
            for one in copy(source, target, datasets=args.dataset, dry_run=args.dry_run):
                counts[one.outcome] += 1
                copied_bytes += one.bytes
                problems += [one] if one.reason is not None else []
                bars.update(bar, advance=1, note=format_size(copied_bytes))
        except (StoreFull, StoreReadError, StoreWriteError) as exc:
            stopped = str(exc)
    if args.json:
        told = {outcome: counts[outcome] for outcome in _OUTCOMES}
        files = [one._asdict() for one in problems]
        print_json({"dry_run": args.dry_run, **told, "bytes": copied_bytes, "files": files, "stopped": stopped})
    else:
        _print(counts, problems, copied_bytes, stopped, dry_run=args.dry_run)
    return 1 if stopped or counts["damaged"] or counts["conflict"] else 0


def _check(args: argparse.Namespace) -> None:
    if args.source is None:
        raise BuildRefused(
            "say what to do: --names, --to or --aliases for an old cache, or --from STORE to copy a store"
        )
    given = [name for name in _OF_OLD_CACHES if getattr(args, name) is not None]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise BuildRefused(f"{named} belongs to --names, --to or --aliases; a store is copied as it is")
    if _place(args.source) == _place(args.store):
        raise BuildRefused(f"--from and --store are both {args.store}")
    if args.dry_run and isinstance(args.store, Path) and not args.store.is_dir():
        raise BuildRefused(f"{args.store} is no folder, and a dry run makes none; all of {args.source} would be copied")


def _place(root: Path | str) -> str:
    return root if isinstance(root, str) else str(root.resolve())


def _print(
    counts: Counter[str], problems: list[Copied], copied_bytes: int, stopped: str | None, *, dry_run: bool
) -> None:
    console = results()
    for one in problems[:_SHOWN]:
        line = Text.assemble((one.outcome, "bold red"), f" {printable(one.name)}: {printable(one.reason or '')}")
        console.print(line, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"and {len(problems) - _SHOWN:,} more; --json names all")
    verb = "would be copied" if dry_run else "copied and read back"
    console.print(
        f"{counts['copied']:,} {verb} ({format_size(copied_bytes)}), {counts['there']:,} already there, "
        f"{counts['conflict']:,} in conflict, {counts['damaged']:,} damaged",
        soft_wrap=True,
    )
    if stopped:
        console.print(Text(f"stopped: {stopped}; the same command again goes on"), soft_wrap=True)
