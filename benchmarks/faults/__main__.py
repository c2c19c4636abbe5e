"""`python -m benchmarks.faults [NAME ...]`: runs fault scripts, prints their counts, and fails on any problem."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import files, packing, sharing, syscalls, writers
from benchmarks.faults.outcome import Load, Script

# Name -> script, its unit's count and its seconds in a full run.
SCRIPTS: dict[str, tuple[Script, int, float]] = {
    "kill9": (writers.kill9, 10_000, 0),
    "syscalls": (syscalls.syscalls, 0, 0),
    "full-disk": (syscalls.full_disk, 200, 0),
    "no-flock": (writers.no_flock, 0, 60),
    "soak": (writers.soak, 0, 600),
    "mutations": (files.mutations, 100_000, 0),
    "pickles": (files.pickles, 1_000, 0),
    "first-use": (writers.first_use, 200, 0),
    "readers": (writers.readers, 0, 30),
    "clock-skew": (writers.clock_skew, 0, 30),
    "stale-listings": (writers.stale_listings, 0, 30),
    "users": (sharing.users, 100, 0),
    "read-only": (sharing.read_only, 0, 0),
    "keys": (sharing.keys, 2_000, 0),
    "pack-kill": (packing.pack_kill, 2_000, 0),
    "pack-full-disk": (packing.pack_full_disk, 200, 0),
}


def main() -> int:
    """Run the chosen scripts; 1 if one of them found a problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="Break what a store stands on and count what it lost, mixed up or did not name.",
        epilog="example:\n  python -m benchmarks.faults kill9 --count 500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*SCRIPTS, []], metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--count", type=int, metavar="N", help="of the script's own unit, instead of a full run")
    parser.add_argument("--seconds", type=float, metavar="S", help="for scripts that run for a time")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random choices (default: 0)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where stores are made; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there")
    args = parser.parse_args()
    logging.getLogger("cache_store").setLevel(logging.ERROR)  # thousands of damaged files are what is asked for
    results = {}
    with tempfile.TemporaryDirectory(prefix="vlm-cache-faults-", dir=args.folder) as folder:
        for name in args.names or SCRIPTS:
            script, count, seconds = SCRIPTS[name]
            load = Load(Path(folder), args.count or count, args.seconds or seconds, args.seed)
            started_s = time.monotonic()
            outcome = script(load)
            counts = ", ".join(f"{number:,} {what}" for what, number in outcome.counts.items())
            print(
                f"{name}: {len(outcome.problems)} problems; {counts}; {time.monotonic() - started_s:.0f} s", flush=True
            )
            for problem in outcome.problems[:10]:
                print(f"  {problem}", flush=True)
            results[name] = {"problems": outcome.problems, "counts": dict(outcome.counts)}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if any(result["problems"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
