"""Checks the features that lie in shards: every byte against the checksum that it was packed with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache_store import naming, shards
from cache_store.errors import StoreReadError, StoreWriteError
from cache_store.reports import Problem, VerifyProgress, VerifyReport
from cache_store.taking import taken_names
from cache_store.verification import checked

SetAside = Callable[[str, str], str | None]


def check_shards(
    root: Path, loose: VerifyReport, progress: Callable[[VerifyProgress], None] | None, set_aside: SetAside | None
) -> VerifyReport:
    """What was found in the loose files, in those that a packer took and in all shards.

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
        for row in np.flatnonzero(counts).tolist():
            name = shard.name(row)
            if name in taken or os.path.lexists(root / name):
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
        if progress is not None:
            progress(VerifyProgress(files, total, size, len(problems)))
    return VerifyReport(
        checked=files,
        problems=sorted(problems, key=lambda problem: problem.path),
        repaired=loose.repaired,
        bytes=size,
        not_features=loose.not_features,
    )


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
