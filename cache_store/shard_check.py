"""Checks the features that lie in shards: every byte against the checksum that it was packed with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import naming, shards
from cache_store.errors import StoreReadError, StoreWriteError
from cache_store.reports import Problem, VerifyProgress, VerifyReport
from cache_store.shard_file import Shard
from cache_store.taking import taken_names
from cache_store.verification import checked

SetAside = Callable[[str, str], str | None]


def check_shards(
    root: Path,
    loose: VerifyReport,
    progress: Callable[[VerifyProgress], None] | None,
    set_aside: SetAside | None,
    only: Collection[str] | None = None,
) -> VerifyReport:
    """What was found in the loose files, in those that a packer took and in all shards; of `only` these names.

    A shard that cannot be opened is one problem.

    Raises:
        StoreReadError: the disk.
    """
    view = shards.of(root).view()
    problems = list(loose.problems)
    files, size = loose.checked, loose.bytes
    problems += [_of_shard(root, name, reason, set_aside) for name, reason in view.damaged.items()]
    winners = view.winners()
    taken = taken_names(view)
    if only is not None:
        winners = [_among(shard, counts, only) for shard, counts in zip(view.shards, winners, strict=True)]
        taken = {name: folder for name, folder in taken.items() if name in only}
    total = files + len(taken) + sum(int(counts.sum()) for counts in winners)
    for name, folder in taken.items():
        found = checked(folder, name)
        if found.bytes is None or os.path.lexists(root / name):
            total -= 1
            continue  # packed by now, or put back, or hidden by a newer file
        files += 1
        size += found.bytes
        if found.reason is not None:
            problems.append(_of_row(name, found.reason, set_aside if found.is_damaged else None))
    for shard, counts in zip(view.shards, winners, strict=True):
        rows = np.flatnonzero(counts)
        for row, name in zip(rows.tolist(), shard.names_of(rows), strict=True):
            if name in taken or os.path.lexists(f"{root}/{name}"):
                total -= 1
                continue  # hidden by a file, which has been checked
            try:
                reason = shard.problem(row)
                is_damaged = reason is not None
            except StoreReadError as exc:
                reason, is_damaged = f"cannot be read: {exc.reason}", False
            files += 1
            size += int(shard.bytes[row])
            if reason is not None:
                problems.append(_of_row(name, reason, set_aside if is_damaged else None))
        shard.forget_pages()
        if progress is not None:
            progress(VerifyProgress(files, total, size, len(problems)))
    return VerifyReport(
        checked=files,
        problems=sorted(problems, key=lambda problem: problem.path),
        repaired=loose.repaired,
        bytes=size,
        not_features=loose.not_features,
    )


def _among(shard: Shard, counts: np.ndarray[Any, Any], names: Collection[str]) -> np.ndarray[Any, Any]:
    """For each row whether it counts and has one of these names."""
    chosen = np.zeros(len(counts), bool)
    rows = np.flatnonzero(counts)
    chosen[rows] = np.fromiter((name in names for name in shard.names_of(rows)), bool, len(rows))
    return chosen


def _of_row(name: str, reason: str, set_aside: SetAside | None) -> Problem:
    if set_aside is None:
        return Problem(name, reason)
    try:
        return Problem(name, reason, set_aside(name, reason))
    except StoreWriteError as exc:
        return Problem(name, f"{reason}; it could not be set aside: {exc.reason}")


def _of_shard(root: Path, name: str, reason: str, set_aside: SetAside | None) -> Problem:
    shown = f"{naming.PACKED}/{name}"
    if set_aside is not None:
        moved_to = naming.quarantine_name(shown)
        # As a problem it stays where the disk refuses.
        with contextlib.suppress(OSError):
            os.makedirs((root / moved_to).parent, exist_ok=True)
            os.rename(root / shown, root / moved_to)
            return Problem(shown, reason, moved_to)
    return Problem(shown, reason)
