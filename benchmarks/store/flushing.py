"""Takes the flush to disk out of what is measured, in this process only: the store itself has no such switch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from cache_store import atomic


@contextmanager
def flushes_skipped() -> Iterator[None]:
    """`os.fsync`, `os.fdatasync` and the flush of a batch do nothing inside; the cost of everything else is left."""
    with (
        mock.patch.object(os, "fsync", _nothing),
        mock.patch.object(os, "fdatasync", _nothing),
        mock.patch.object(atomic, "_flush_all", _nothing),
    ):
        yield


def settle_disk(_: int = 0) -> None:
    """Write what others left dirty, so that the next flush pays for its own bytes only."""
    os.sync()


def _nothing(_: object) -> None:
    """Stands in for a flush."""
