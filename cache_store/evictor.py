"""Unlinks what was used least recently until the store fits, at a cost that does not grow with the store."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache_store import shards
from cache_store.accounts import EVICTING, Entry, joined
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal, deletion, line, now_us
from cache_store.ledger import Ledger
from cache_store.naming import is_shard, is_small
from cache_store.opening import entry_of, is_packed
from cache_store.pins import Protected, active
from cache_store.removing import remove, remove_loose, waste_lines
from cache_store.rewriting import Rewriter
from cache_store.scan import fold
from cache_store.snapshot import Snapshot
from cache_store.usage import Usage

if TYPE_CHECKING:
    from cache_store.entry_table import UsedRow

_AT_ONCE = 256
_WARN_FROM = 1000  # evictions of unread entries in one process
_SAME_US = 1_000_000  # a file written so much later than its writer said is another one

logger = logging.getLogger("cache_store")


class Row(NamedTuple):
    """An entry as evictors look at it."""

    name: str
    bytes: int
    written_us: int
    used_us: int
    runs: str


_row: Callable[[UsedRow], Row] = partial(tuple.__new__, Row)  # as `Row._make`, in a third of its time


@dataclass(eq=False)
class Guard:
    """What must not be evicted now."""

    runs: set[str]
    names: set[str]
    pins: Protected

    def keeps(self, name: str, runs: str) -> bool:
        """Whether an entry stays, given the runs that put or protect it."""
        if runs and not self.runs.isdisjoint(runs.split(",")):
            return True
        return name in self.names or self.pins.covers(name)


@dataclass(eq=False)
class _Freed:
    """What one batch has unlinked."""

    as_of_us: int  # before the first: who writes one of the files anew does so later
    sizes: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=dict)  # of them, bytes that stay in shards
    otherwise: dict[str, Entry | None] = field(default_factory=dict)  # found rewritten, or gone


def in_order(batches: Iterable[list[UsedRow]]) -> Iterator[Row]:
    """The entries of one pool, least recently used first."""
    return map(_row, chain.from_iterable(batches))


def pool_to_evict(small_bytes: int, limit_bytes: int) -> str:
    """The pool whose turn it is: small entries go while they hold more than half of the limit, else large ones."""
    return "small" if small_bytes > limit_bytes // 2 else "large"


class Evictor:
    """Evicts from one store in one process. One thread at a time, holding the compactor's lease if possible."""

    def __init__(self, root: Path, ledger: Ledger, journal: Journal, usage: Usage, run_id: str | None) -> None:
        self._root = root
        self._folder = str(root)  # asked of a Path each time, it costs as much as the rest of a name
        self._ledger = ledger
        self._journal = journal
        self._usage = usage
        self._run_id = run_id
        self._queues: dict[str, Iterator[Row]] = {}
        self._put_back: dict[str, Row] = {}  # the first of a queue, taken and not evicted
        self._queues_of: Snapshot | None = None
        self._rewriter = Rewriter(root, journal)
        self._evicted = self._unread = 0
        self._warn_at = _WARN_FROM

    def make_fit(
        self, limit_bytes: int, low_water_bytes: int, *, writing: Iterable[str] = (), may_fold: bool = True
    ) -> bool:
        """Evict until the total is at most `limit_bytes`, then on to the low water; False when too little may go.

        Without `may_fold` only what the last snapshot knows is looked at. Entries named in `writing`, being written,
        pinned, or of active runs are kept. Small entries go while they hold more than half of the limit, else large
        ones: a flood of either kind leaves the other its half.

        Raises:
            StoreWriteError: the operating system refused to unlink.
        """
        ledger = self._ledger
        ledger.read()
        now_s = file_system_now_s(self._root)
        silences_s = ledger.silences_s(now_s)
        left_by_the_dead = ledger.settle(silences_s)
        if left_by_the_dead:
            self._journal.append(*left_by_the_dead)
            ledger.read()
        guard = Guard(
            ledger.changes.active_runs(silences_s) | ({self._run_id} if self._run_id else set()),
            ledger.changes.being_written.union(writing),
            Protected(active(self._root, now_s)),
        )
        self._rewriter = Rewriter(self._root, self._journal)
        self._pass(limit_bytes, low_water_bytes, guard, is_last=False)
        if ledger.total_bytes > limit_bytes and may_fold:
            # The snapshot's order is used up: bring what was written and read since then into it.
            fold(self._root, ledger, self._journal, silences_s)
            ledger.read()
            self._pass(limit_bytes, low_water_bytes, guard, is_last=True)
        return ledger.total_bytes <= limit_bytes

    def _pass(self, limit_bytes: int, low_water_bytes: int, guard: Guard, *, is_last: bool) -> None:
        self._open_queues()
        while rows := self._chosen(limit_bytes, low_water_bytes, guard, is_last=is_last):
            # Announced, so that whoever lists the files meanwhile does not take them for lost: the `d` lines follow.
            self._journal.append(line("w", 0, EVICTING, *(row.name for row in rows)))
            undisturbed = self._undisturbed(rows)
            freed = _Freed(as_of_us=now_us())
            try:
                self._unlink_all(undisturbed, freed)
            finally:
                self._tell(rows, freed)
            self._open_queues()
        self._correct_total()
        # What was evicted from shards makes room only when these are rewritten; the worst of them first.
        while self._ledger.total_bytes > limit_bytes and self._rewriter.rewrite_worst():
            self._ledger.read()

    def _chosen(self, limit_bytes: int, low_water_bytes: int, guard: Guard, *, is_last: bool) -> list[Row]:
        """The next entries to unlink, a few at a time; none when enough is free or nothing may go."""
        changes = self._ledger.changes
        rest_bytes = changes.published_bytes + changes.granted_bytes - self._rewriter.dead_bytes()
        small_bytes = changes.small_bytes
        rows: list[Row] = []
        while rest_bytes > low_water_bytes and len(rows) < _AT_ONCE:
            pool = pool_to_evict(small_bytes, limit_bytes)
            row = self._next(pool, guard)
            if row is None and not is_last and self._has_newer(pool):
                break
            if row is None:
                pool = "large" if pool == "small" else "small"
                row = self._next(pool, guard)
            if row is None:
                break
            if rest_bytes <= limit_bytes and rest_bytes - row.bytes < low_water_bytes:
                # Optional evictions never take more than asked: one more large entry could be a third of the store.
                self._put_back[pool] = row
                break
            rows.append(row)
            rest_bytes -= row.bytes
            small_bytes -= row.bytes if is_small(row.bytes) else 0
        return rows

    def _next(self, pool: str, guard: Guard) -> Row | None:
        changes = self._ledger.changes
        rows = self._queues[pool]
        if pool in self._put_back:
            rows = chain((self._put_back.pop(pool),), rows)
        for row in rows:
            name = row.name
            if name in changes.entries or (changes.used and changes.used.get(name, 0) > row.used_us):
                continue  # gone, or used since: the next snapshot has it in its new place
            runs = joined(row.runs, changes.runs.get(name, "")) if changes.runs else row.runs
            if not guard.keeps(name, runs) and not is_shard(name):
                return row
        return None

    def _has_newer(self, pool: str) -> bool:
        """Whether entries of the pool were written since the snapshot: they must go before the other pool's."""
        entries = self._ledger.changes.entries.values()
        return any(entry is not None and is_small(entry.bytes) == (pool == "small") for entry in entries)

    def _undisturbed(self, rows: list[Row]) -> list[Row]:
        """Those of the announced rows that nobody else is at, as the journals say now.

        Of an evictor and a writer who announce one file at the same moment at least one sees the other: the evictor
        lets it be, the writer waits. Else both would take its bytes off the sums. Of two evictors one goes on.
        """
        self._ledger.read()
        own = self._journal.name or ""
        tails = self._ledger.changes.tails.items()
        theirs = (tail.writing for name, tail in tails if name != own and not (EVICTING in tail.writing and name > own))
        taken = set().union(*theirs)
        return [row for row in rows if row.name not in taken]

    def _unlink_all(self, rows: list[Row], freed: _Freed) -> None:
        # A store without shards is asked for them once, not at each file: the question costs half as much as an unlink.
        view = shards.of(self._root).view
        has_shards = view() is not shards.EMPTY
        for row in rows:
            self._unlink(row, freed, has_shards=has_shards)
        if not has_shards and view() is not shards.EMPTY:
            # A packer has begun meanwhile: what it took, or packed and left beside the file, is no longer to be found.
            for row in rows:
                if is_packed(self._root, row.name):
                    self._unlink(row, freed, has_shards=True)

    def _unlink(self, row: Row, freed: _Freed, *, has_shards: bool) -> None:
        path = f"{self._folder}/{row.name}"
        try:
            if not _is_as_known(path, row):
                found = entry_of(self._root, row.name)
                if found is not None and (found.bytes != row.bytes or found.written_us > row.written_us + _SAME_US):
                    freed.otherwise[row.name] = found  # rewritten: no longer the least recently used
                    return
            if not has_shards:
                is_removed = remove_loose(self._folder, row.name)
            elif is_removed := (removed := remove(self._root, row.name)) is not None:
                for shard, size in removed.shards.items():
                    freed.shards[shard] = freed.shards.get(shard, 0) + size
        except StoreWriteError as exc:
            if exc.errno not in (errno.EACCES, errno.EPERM):
                raise
            # Another user's file in a folder that only its owner may empty: the next one has to go instead.
            logger.warning("%s may not be evicted by this user: %s", path, exc.reason)
            return
        if not is_removed:
            freed.otherwise[row.name] = None
            return
        if row.used_us <= row.written_us and row.name not in freed.sizes:
            freed.unread.append(row.name)
        freed.sizes[row.name] = row.bytes

    def _tell(self, rows: list[Row], freed: _Freed) -> None:
        kept = [row.name for row in rows if row.name not in freed.sizes]
        lines = [deletion(freed.sizes, time_us=freed.as_of_us)] if freed.sizes else []
        lines += waste_lines(self._root, freed.shards)
        self._journal.append(*lines, line("x", 0, EVICTING, *kept))
        self._usage.evicted(freed.sizes, unread=freed.unread)
        self._ledger.read()
        changes = self._ledger.changes
        announced = changes.being_written
        for name, found in freed.otherwise.items():
            # By a program that keeps no journal: the books are wrong. Else its line has come, or will.
            if name not in announced and name not in changes.entries:
                changes.entries[name] = found
        self._evicted += len(freed.sizes)
        self._unread += len(freed.unread)
        if self._unread >= self._warn_at and 2 * self._unread > self._evicted:
            self._warn_at = 2 * self._unread
            logger.warning(
                "%s: %d of the last %d evicted features had never been read; what is written is thrown away again, "
                "so the limit is too small for what uses this store: raise it, or pin what matters",
                self._root,
                self._unread,
                self._evicted,
            )

    def _correct_total(self) -> None:
        """Write down what the sums of the journals get wrong, for the writers who only add them up."""
        changes = self._ledger.changes
        error = changes.published_bytes + changes.granted_bytes - self._ledger.read_bytes
        if error:
            self._journal.append(line("k", error, 0))
        self._ledger.read()

    def _open_queues(self) -> None:
        snapshot = self._ledger.snapshot
        if snapshot is self._queues_of and snapshot is not None:
            return
        try:
            rows = {pool: snapshot.batches(pool) if snapshot else iter(()) for pool in ("small", "large")}
        except (OSError, ValueError):
            # Damaged: an empty order makes `make_fit` list the files and write a new one.
            rows = {"small": iter(()), "large": iter(())}
        self._queues = {pool: in_order(batches) for pool, batches in rows.items()}
        self._queues_of = snapshot
        self._put_back = {}


def _is_as_known(path: str, row: Row) -> bool:
    """Whether a loose file is the one that the books have: the usual case, at half the cost of `entry_of`."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    is_same = status.st_size == row.bytes and status.st_mtime_ns // 1000 <= row.written_us + _SAME_US
    return is_same and stat.S_ISREG(status.st_mode)
