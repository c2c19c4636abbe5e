"""From a parsed command to the function that does it, and the errors that mean "refused"."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cache_store import CacheStoreError
from jobs import store_commands
from jobs.build_command import build
from jobs.demo_command import demo
from pipeline.errors import PipelineError

# What a person can mend by asking differently; anything else is a fault of ours and keeps its traceback.
REFUSALS = (PipelineError, CacheStoreError)

_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "build": build,
    "stats": store_commands.stats,
    "ls": store_commands.ls,
    "show": store_commands.show,
    "verify": store_commands.verify,
    "prune": store_commands.prune,
    "clear": store_commands.clear,
    "demo": demo,
}


def command(args: argparse.Namespace) -> int:
    """Run the command that `args.command` names; returns its exit status."""
    return _COMMANDS[args.command](args)
