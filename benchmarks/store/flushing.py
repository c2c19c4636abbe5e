"""Takes the flush to disk out of what is measured, in this process only: the store itself has no such switch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def flushes_skipped() -> Iterator[None]:
    """`os.fsync` and `os.fdatasync` do nothing inside; what is left is the cost of everything else."""
    with mock.patch.object(os, "fsync", _nothing), mock.patch.object(os, "fdatasync", _nothing):
        yield


def settle_disk(_: int = 0) -> None:
    """Write what others left dirty, so that the next flush pays for its own bytes only."""
    os.sync()


def _nothing(fd: int) -> None:
    """Stands in for a flush."""
