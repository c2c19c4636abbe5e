"""Reads and counters of one process, kept in memory and written to its journal in batches."""

from __future__ import annotations

import os
import threading
import time

from cache_store.errors import StoreWriteError
from cache_store.journal import Journal, line, now_us

_FLUSH_AFTER_READS = 256
_FLUSH_AFTER_S = 10.0


class Usage:
    """Batches what reads tell the evictor; a read must not cost a write. Safe for threads.

    A forked child starts empty: the parent writes what it had counted.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._used: dict[str, int] = {}
        self._hits = self._misses = self._evictions = self._damaged = 0
        self._since_s = time.monotonic()

    def hit(self, name: str) -> None:
        self._begin()
        with self._lock:
            self._hits += 1
            self._used[name] = now_us()
            is_due = len(self._used) >= _FLUSH_AFTER_READS or time.monotonic() - self._since_s > _FLUSH_AFTER_S
        if is_due:
            self.flush()

    def missed(self, name: str) -> None:
        self._begin()
        with self._lock:
            self._misses += 1

    def evicted(self, name: str) -> None:
        self._begin()
        with self._lock:
            self._evictions += 1

    def damaged(self, name: str) -> None:
        self._begin()
        with self._lock:
            self._damaged += 1

    def flush(self) -> None:
        """Write the batch; errors are swallowed: a read-only store must stay readable, these are hints."""
        self._begin()
        with self._lock:
            counts = (self._hits, self._misses, self._evictions, self._damaged)
            lines = [line("u", 0, name, time_us=used_us) for name, used_us in self._used.items()]
            if any(counts):
                lines.append(line("n", 0, *counts))
            self._clear()
        if lines:
            try:
                self._journal.append(*lines)
            except StoreWriteError:
                # Without permission to write there is nowhere to keep statistics; a full disk shows at the
                # next put.
                return

    def _begin(self) -> None:
        if self._pid != os.getpid():
            self._forget()
