"""`vlm-cache stats`: what a store holds and what was asked of it, once, watched, or as an HTML page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from rich.live import Live

from cache_store import FeatureStore, StoreStats
from jobs.printing import open_store, print_json, results
from jobs.stats_view import MOST_ROWS, Rates, headlines, render
from pipeline.errors import BuildRefused

# Head lines, warnings and the models' rows of a watched view, which must stay in sight.
_LINES_BESIDE_ROWS = 14


def stats(args: argparse.Namespace) -> int:
    """Show the statistics as the options say."""
    with open_store(args.store) as store:
        if args.watch is not None:
            if args.html is not None:
                raise BuildRefused("--watch and --html exclude each other; a page shows one moment")
            return _watch(store, args)
        found = store.stats()
        if args.html is not None:
            _write_page(args.html, found, store)
    if args.html is None and not args.json:
        console = results()
        most_rows = None if args.all else MOST_ROWS
        console.print(render(found, now_s=time.time(), width=console.width, most_rows=most_rows))
    if args.json:
        print_json(found.to_json())
    return 0


def _write_page(path: Path, found: StoreStats, store: FeatureStore) -> None:
    try:
        # Late: half a second of importing, and a package that a reading install does not have.
        from jobs.stats_page import stats_page
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BuildRefused("--html needs matplotlib, which is not installed; pip install 'vlm-cache[build]'") from exc
    page = stats_page(found, store.entries(), title=f"Feature store {store.location}", now_s=time.time())
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise BuildRefused(f"--html {path} cannot be written: {exc.strerror or exc}") from exc
    print(f"wrote {path}", file=sys.stderr)


def _watch(store: FeatureStore, args: argparse.Namespace) -> int:
    """Look again every `--watch` seconds until Ctrl-C; into a file goes a line each time, with `--json` an object."""
    console = results()
    before: tuple[float, StoreStats] | None = None
    live = Live(console=console, auto_refresh=False, screen=True) if console.is_terminal and not args.json else None
    last = None
    try:
        with live or nullcontext():
            while True:
                found, looked_s = store.stats(), time.monotonic()
                rates = Rates.between(before[1], found, looked_s - before[0]) if before is not None else None
                before = (looked_s, found)
                if live is not None:
                    room = console.height - _LINES_BESIDE_ROWS - 2 * len(found.pins)
                    rows = None if args.all else max(3, min(MOST_ROWS, room))
                    last = render(found, now_s=time.time(), width=console.width, most_rows=rows, rates=rates)
                    live.update(last, refresh=True)
                elif args.json:
                    print(json.dumps({"time": time.time(), **found.to_json()}), flush=True)
                else:
                    print(_line(found, rates), flush=True)
                time.sleep(args.watch)
    except KeyboardInterrupt:
        # The other screen is gone with its last view; what was seen last stays readable.
        if last is not None:
            console.print(last)
    return 0


def _line(found: StoreStats, rates: Rates | None) -> str:
    words = list(headlines(found, now_s=time.time()))
    if rates is not None:
        words.append(f"{rates.written:.1f} written/s, {rates.evicted:.1f} evictions/s, {rates.hits:.1f} hits/s")
    return f"{time.strftime('%H:%M:%S')}  {'; '.join(words)}"
