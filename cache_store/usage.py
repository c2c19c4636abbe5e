"""Reads and counters of one process, kept in memory and written to its journal in batches."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

from cache_store.accounts import Counters
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal, line
from cache_store.naming import dataset_shown, group_of

_FLUSH_AFTER_READS = 4096
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
        self._reads: dict[str, int] = {}  # name -> how often, in the order of the last read
        self._others: list[tuple[str, str]] = []  # (counter, name)
        self._since_s = time.monotonic()

    def hit(self, name: str) -> None:
        """Count a read; the caller asks `tick` from time to time."""
        with self._lock:
            reads = self._reads
            reads[name] = reads.pop(name, 0) + 1
        if len(reads) >= _FLUSH_AFTER_READS:
            self.flush()

    def tick(self, now_s: float) -> None:
        """Write what has been waiting for long; `now_s` is the monotonic clock."""
        if now_s - self._since_s > _FLUSH_AFTER_S:
            self.flush()

    def missed(self, name: str) -> None:
        self._count("misses", name)

    def damaged(self, name: str) -> None:
        self._count("damaged", name)

    def evicted(self, names: Iterable[str], *, unread: Iterable[str]) -> None:
        """Count evictions; `unread` are those of them that nobody had read."""
        for name in names:
            self._count("evictions", name)
        for name in unread:
            self._count("unread", name)

    def _count(self, counter: str, name: str) -> None:
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            self._others.append((counter, name))
            is_due = len(self._others) >= _FLUSH_AFTER_READS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write the batch; errors are swallowed: a read-only store must stay readable, these are hints."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            reads, others = self._reads, self._others
            self._clear()
        if not reads and not others:
            return
        lines = [
            line("n", 0, dataset, c.hits, c.misses, c.evictions, c.damaged, c.unread)
            for dataset, c in _by_dataset(reads, others).items()
        ]
        if reads:
            lines.append(line("u", 0, *reads))
        try:
            self._journal.append(*lines)
        except StoreWriteError:
            # Without permission to write there is nowhere to keep statistics; a full disk shows at the next put.
            return


def _by_dataset(reads: dict[str, int], others: list[tuple[str, str]]) -> dict[str, Counters]:
    counters: dict[str, Counters] = {}
    hits: dict[str, int] = {}
    samples: dict[str, str] = {}
    for name, count in reads.items():
        group = group_of(name)
        hits[group] = hits.get(group, 0) + count
        samples[group] = name
    for group, count in hits.items():
        counters.setdefault(dataset_shown(samples[group]), Counters()).hits += count
    for counter, name in others:
        of_dataset = counters.setdefault(dataset_shown(name), Counters())
        setattr(of_dataset, counter, getattr(of_dataset, counter) + 1)
    return counters
