"""`vlm-cache retry-failed`: builds again exactly what an earlier run left as dead letters, as it was asked for then."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from cache_store.naming import RUNS
from jobs.arguments import make_parser
from jobs.build_command import build
from jobs.parsers import store_root
from jobs.printing import print_json
from jobs.run_files import FailedRun, read_failed
from jobs.run_folder import NOT_ASKED_AGAIN
from pipeline.errors import BuildRefused
from pipeline.lanes import BuildReport
from pipeline.sources import parse_media_path


def retry_failed(args: argparse.Namespace) -> int:
    """Build the failed units of a run again; returns 0 if all of them have their feature now, else 1.

    Raises:
        BuildRefused: there are no dead letters to read, the same arguments mean another recipe today, or the report is
            to go where the dead letters are.
    """
    run = read_failed(args.run)
    if args.report is not None and args.report.resolve() == run.folder.resolve():
        raise BuildRefused(
            f"--report: {args.report} holds the dead letters that are retried, and a retry that is stopped would lose "
            "those that it did not get to; name another folder"
        )
    if not run.recipes:
        print(f"{args.run} holds no failed units", file=sys.stderr)
        if args.json:
            print_json({**BuildReport().to_json(), "folder": None})
        return 0
    return build(_asked_then(run, args), only=run)


def _names_of_arguments() -> Iterable[str]:
    required = ["--source", "vla", "--data", ".", "--encoder", "qwen2_5_vl", "--model", "small", "--store", "."]
    return vars(make_parser().parse_args(["build", *required])).keys() - set(NOT_ASKED_AGAIN)


def _asked_then(run: FailedRun, args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of the earlier build; where to run and to report is today's choice."""
    asked = dict(run.arguments)
    try:
        for name in _names_of_arguments():
            asked[name]
        asked["store"] = store_root(asked["store"])
        asked["data"] = parse_media_path(asked["data"])
        if asked["annotations"] is not None:
            asked["annotations"] = parse_media_path(asked["annotations"])
    except (KeyError, TypeError, AttributeError, argparse.ArgumentTypeError) as exc:
        raise BuildRefused(f"{args.run} was not written by a build of this version: {exc}") from exc
    _refuse_moved_store(run, asked["store"])
    asked |= {"command": "build", "json": args.json, "report": args.report}
    asked |= {"limit": None, "soft_limit": None}  # the store keeps its own, perhaps changed since
    if args.address is not None:
        asked["address"] = args.address
    return argparse.Namespace(**asked)


def _refuse_moved_store(run: FailedRun, store: Path | str) -> None:
    """Refuse to make a new store where the run's was before it was moved, or to fill another than the run lies in."""
    if not isinstance(store, Path):
        return
    advice = "the build itself, with --store, makes what is missing in a store that was moved or copied"
    if not store.is_dir():
        raise BuildRefused(f"the store of {run.folder}, {store}, is no longer there; {advice}")
    folder = run.folder.resolve()
    if folder.parent.match(RUNS) and not folder.parents[2].samefile(store):
        raise BuildRefused(f"{run.folder} lies in another store than {store}, which its build wrote to; {advice}")
