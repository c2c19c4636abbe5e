"""`vlm-cache report`: what a build's folder tells, as one HTML page, as a few lines, or as JSON."""

from __future__ import annotations

import argparse
import sys

from jobs.printing import print_json, printable, results
from jobs.run_files import PAGE, dead_letters
from jobs.run_summary import read_run
from pipeline.errors import BuildRefused


def report(args: argparse.Namespace) -> int:
    """Write the page and say what is in it; with `--json` and without `--html` the figures alone.

    Raises:
        BuildRefused: no run is there, or the page cannot be written.
    """
    summary = read_run(args.run)
    if args.html is not None or not args.json:
        try:
            # Late: a package that a reading install does not have.
            from jobs.run_page import headlines, run_page, warnings
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] != "matplotlib":
                raise
            raise BuildRefused("a page needs matplotlib; pip install 'vlm-cache[build]', or pass --json") from exc
        path = args.html or args.run / PAGE
        whole = run_page(summary, dead_letters(args.run), bare=args.bare)
        try:
            path.write_text(whole, encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            raise BuildRefused(f"{path} cannot be written: {exc.strerror or exc}; pass --html FILE") from exc
        print(f"wrote {printable(str(path))}", file=sys.stderr)
    if args.json:
        print_json(summary.to_json(args.bare))
    else:
        for line in (*headlines(summary, args.bare), *warnings(summary)):
            results().print(line, markup=False, soft_wrap=True)
    return 0
