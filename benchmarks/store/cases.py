"""What the rows about many entries run in processes of their own; imports inside, because they are part of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def names(root: Path) -> dict[str, Any]:
    """List the names: the least that any of them has to do."""
    return {"entries": len(os.listdir(root))}


def rescan(root: Path) -> dict[str, Any]:
    """List and stat every file, as the old scripts do after every save."""
    from benchmarks.store.rescan import enforce_limit

    return {"bytes": enforce_limit(root, 2**60)}


def command(root: Path, *, name: str, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """`vlm-cache <name> --store ROOT` and more arguments; with `--json` what it printed."""
    from jobs.__main__ import main

    printed = io.StringIO() if "--json" in arguments else sys.stdout
    with contextlib.redirect_stdout(printed):
        status = main([name, "--store", str(root), *arguments])
    if status != 0:
        raise RuntimeError(f"vlm-cache {name} ended with {status}")
    return {"printed": json.loads(printed.getvalue())} if isinstance(printed, io.StringIO) else {}


def plan(root: Path, *, entries: int) -> dict[str, Any]:
    """Ask for the state of every entry under its recipe, as a build that resumes does."""
    from benchmarks.store.keys import RECIPE, step_key
    from cache_store import FeatureStore

    with FeatureStore(root) as store:
        asked = ((step_key(index), RECIPE) for index in range(entries))
        return {"present": sum(state == "present" for state in store.states(asked))}


def evict(root: Path, *, width: int, puts: int) -> dict[str, Any]:
    """Publish at the limit; see `benchmarks.store.eviction`."""
    from benchmarks.store.eviction import publish_at_the_limit

    return publish_at_the_limit(root, width=width, puts=puts)


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "names": names,
    "rescan": rescan,
    "command": command,
    "plan": plan,
    "evict": evict,
}
