"""Reads and counters of one process, kept in memory and written to its journal in batches."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from cache_store.accounts import Counters
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal, line
from cache_store.naming import dataset_shown, group_of
from cache_store.processes import HERE

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
        self._pid = HERE.pid
        self._lock = threading.Lock()
        self._reads: deque[str] = deque()
        self._counted_reads: list[str] = []
        self._hits: Counter[str] = Counter()  # of the counted reads, by data set
        self._others: dict[str, list[str]] = {}  # counter -> names
        self._other_count = 0
        self._since_s = time.monotonic()

    def hit(self, name: str) -> None:
        """Count a read; the caller asks `tick` from time to time."""
        reads = self._reads
        reads.append(name)  # one step for all threads, so without the lock
        if len(reads) >= _FLUSH_AFTER_READS:
            self.flush()

    def hits(self, names: Sequence[str], datasets: Iterable[str]) -> None:
        """Count several reads, whose data sets the caller knows."""
        with self._lock:
            self._counted_reads += names
            self._hits.update(datasets)
            is_due = len(self._counted_reads) >= _FLUSH_AFTER_READS
        if is_due:
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
        self._count("evictions", *names)
        self._count("unread", *unread)

    def _count(self, counter: str, *names: str) -> None:
        if self._pid != HERE.pid:
            self._forget()
        with self._lock:
            self._others.setdefault(counter, []).extend(names)
            self._other_count += len(names)
            is_due = self._other_count >= _FLUSH_AFTER_READS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write the batch; errors are swallowed: a read-only store must stay readable, these are hints."""
        if self._pid != HERE.pid:
            self._forget()
        with self._lock:
            # What other threads append meanwhile waits for the next batch.
            names = [self._reads.popleft() for _ in range(len(self._reads))]
            counted, self._others, self._other_count = {"hits": names, **self._others}, {}, 0
            hits, self._hits = self._hits, Counter()
            names, self._counted_reads = names + self._counted_reads, []
            self._since_s = time.monotonic()
        if not names and not any(counted.values()):
            return
        counters = _by_dataset(counted)
        for dataset, count in hits.items():
            counters.setdefault(dataset, Counters()).hits += count
        lines = [
            line("n", 0, dataset, c.hits, c.misses, c.evictions, c.damaged, c.unread) for dataset, c in counters.items()
        ]
        if names:
            latest = list(dict.fromkeys(reversed(names)))
            latest.reverse()
            lines.append(line("u", 0, "\t".join(latest)))
        try:
            self._journal.append(*lines)
        except StoreWriteError:
            # Without permission to write there is nowhere to keep statistics; a full disk shows at the next put.
            return


def _by_dataset(counted: dict[str, list[str]]) -> dict[str, Counters]:
    counters: dict[str, Counters] = {}
    for counter, names in counted.items():
        for name, count in _samples(names):
            of_dataset = counters.setdefault(dataset_shown(name), Counters())
            setattr(of_dataset, counter, getattr(of_dataset, counter) + count)
    return counters


def _samples(names: list[str]) -> Iterable[tuple[str, int]]:
    """A feature's name for each group, and how many of `names` are of it."""
    if "/" not in "".join(names):
        # Steps in the flat layout, each of which costs its reader its part of this.
        episodes = Counter([name.rpartition("_vlm")[0] for name in names])
        return [(f"{episode}_vlm0.pt", count) for episode, count in episodes.items()]
    groups = list(map(group_of, names))
    sample_of = dict(zip(groups, names, strict=True))
    return [(sample_of[group], count) for group, count in Counter(groups).items()]
