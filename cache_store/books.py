"""One process's hand on the accounting: what it writes is claimed, published and deleted through here."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache_store import naming, opening, removing, shards
from cache_store.accounts import Changes
from cache_store.atomic import Bytes, publish, publish_many, publish_new
from cache_store.budget import Budget, Growth
from cache_store.clock import file_system_now_s
from cache_store.errors import CacheStoreError, EntryExists, StoreWriteError
from cache_store.journal import Journal, Line, deletion, line, now_us
from cache_store.lease import lease
from cache_store.ledger import Ledger
from cache_store.removing import waste_lines
from cache_store.scan import fold, reconcile
from cache_store.settings import Settings, mark_format
from cache_store.shards import Place
from cache_store.usage import Usage

if TYPE_CHECKING:
    from pyarrow import Table

_FOLD_CHECK_EVERY_PUTS = 1024
_EVICTION_WAIT_S = 10.0  # a batch takes milliseconds, unless its process was killed
_EVICTION_POLL_S = 0.002

logger = logging.getLogger("cache_store")


class NewFile(NamedTuple):
    """A feature file before it is written: relative path, content, and its recipe's first 8 hex digits or ""."""

    name: str
    buffers: Sequence[Bytes]
    fingerprint8: str


class View(NamedTuple):
    """The store as the files are: all entries, and the counters and runs of the journals."""

    table: Table  # the features
    changes: Changes
    active_runs: set[str]
    waste_bytes: int = 0  # of shards, beside the features in them

    @classmethod
    def of(cls, table: Table, changes: Changes, active_runs: set[str]) -> View:
        """The view of a table that has the shards as well."""
        from cache_store import entry_table

        features, waste = entry_table.apart_from_shards(table)
        return cls(features, changes, active_runs, sum(waste.values()))


class Books:
    """Journal, usage, ledger and budget of one store in one process. For its threads, not a forked child."""

    def __init__(self, root: Path, run_id: str | None) -> None:
        self._root = root
        self._prefix = f"{root}/"
        self.run_id = run_id
        self._lock = threading.RLock()
        self._is_format_known = False
        self._puts = 0
        self.journal = Journal(root / naming.JOURNALS, run_id)
        self.usage = Usage(self.journal)
        self._ledger = Ledger(root)
        self.budget = Budget(root, self._ledger, self.journal, self.usage, run_id)
        if run_id is not None:
            # The open journal is what makes a run active, also for a driver that itself puts nothing. A
            # reader of a read-only store has no entries to protect.
            with contextlib.suppress(StoreWriteError):
                self.journal.append()

    def now_us(self) -> int:
        """Microseconds since 1970 by the file system's clock.

        Raises:
            StoreWriteError: the journal, by whose file it is told, cannot be written.
        """
        if self.journal.name is None:
            self.journal.append()
        return self.journal.now_us()

    def publish(self, file: NewFile, *, create_only: bool = False) -> None:
        """Write a feature under its name within the limit, and journal it.

        Raises:
            EntryExists: with `create_only`, when the name is taken.
            StoreFull, StoreWriteError: nothing was published.
        """
        with self._published([file]) as published:
            if create_only and opening.is_packed(self._root, file.name):
                raise EntryExists(self._prefix + file.name)
            publish(file.buffers, self._prefix + file.name, create_only=create_only, is_taken=self._is_packed)
            published.add(file.name)

    def publish_many(self, files: Sequence[NewFile], *, create_only: bool = False) -> None:
        """As `publish` for several files with one flush to the disk; an error tells which are `published`.

        Raises:
            EntryExists: with `create_only`, when a name is taken, perhaps after some of the files.
            StoreFull: nothing was published.
            StoreWriteError: the disk failed, perhaps after some of the files.
        """
        with self._published(files) as published:
            taken = next((one.name for one in files if create_only and opening.is_packed(self._root, one.name)), None)
            if taken is not None:
                raise EntryExists(self._prefix + taken)
            targets = [(file.buffers, self._prefix + file.name) for file in files]
            try:
                publish_many(
                    targets,
                    published=lambda position: published.add(files[position].name),
                    create_only=create_only,
                    is_taken=self._is_packed,
                )
            except CacheStoreError as exc:
                exc.published = [self._root / name for name in published]
                raise

    def publish_copy(self, file: NewFile, written_ns: int) -> None:
        """Publish a copy of what lies elsewhere, with that one's time of writing, unless the name is taken.

        Not flushed to the disk: what a power loss damages is noticed by its checksum and copied again.

        Raises:
            StoreFull, StoreWriteError: nothing was published.
        """
        with self._published([file]) as published:
            content = b"".join(file.buffers)
            if publish_new([(content, self._prefix + file.name, written_ns)], flush=False)[0]:
                published.add(file.name)

    def _is_packed(self, path: str) -> bool:
        return opening.is_packed(self._root, path.removeprefix(self._prefix))

    @contextmanager
    def _published(self, files: Sequence[NewFile]) -> Iterator[set[str]]:
        self.mark_format()
        sizes = [sum(map(len, file.buffers)) for file in files]  # the buffers are one-dimensional and of bytes
        olds = [size_of(self._prefix + file.name) for file in files]
        names = [file.name for file in files]
        packed = self.packed(names)
        growths: list[Growth] = []
        if self.budget.limits.limit_bytes is not None:
            growths, olds = self._claimed(files, sizes, olds)
        published: set[str] = set()
        try:
            yield published
        finally:
            claimed = dict(growths)
            waste = self.superseded(packed, published, olds=dict(zip(names, olds, strict=True)))
            lines = [
                self._line_of(file, size, old_bytes, claimed.pop(file.name, 0))
                for file, size, old_bytes in zip(files, sizes, olds, strict=True)
                if file.name in published
            ]
            if claimed:
                with self._lock:
                    self.budget.release([Growth(*growth) for growth in claimed.items()])
            if lines:
                self.journal.append(*waste, *lines)
                self.count_puts(len(lines))

    def mark_format(self) -> None:
        """Say which format the store has, before the first write of this process."""
        if not self._is_format_known:
            mark_format(self._root)
            self._is_format_known = True

    def packed(self, names: Sequence[str]) -> dict[str, list[Place]]:
        """Where these lie in shards. Before anything is published: what is packed later may be newer."""
        view = shards.of(self._root).view()
        return {names[at]: places for at in view.having(names) if (places := view.places(names[at]))}

    def _claimed(
        self, files: Sequence[NewFile], sizes: Sequence[int], olds: Sequence[int]
    ) -> tuple[list[Growth], list[int]]:
        """Find room for files that may replace others of so many bytes; returns the room, and what they replace now."""
        growths = [Growth(file.name, max(0, size - old)) for file, size, old in zip(files, sizes, olds, strict=True)]
        with self._lock:
            self._know_files()
            self.budget.claim(growths)
        # From now on the files are known to be written; but some may have been evicted while this waited for room.
        if any(olds):
            self._wait_for_evictors({file.name for file in files})
        olds = [size_of(self._prefix + file.name) for file in files]
        pairs = list(zip(growths, (max(0, size - old) for size, old in zip(sizes, olds, strict=True)), strict=True))
        more = [Growth(one.name, wanted - one.bytes) for one, wanted in pairs if wanted > one.bytes]
        if more:
            with self._lock:
                try:
                    self.budget.claim(more)
                except BaseException:
                    self.budget.release(growths)
                    raise
        return [Growth(one.name, max(one.bytes, wanted)) for one, wanted in pairs], olds

    def _wait_for_evictors(self, names: set[str]) -> None:
        """Let other processes unlink what they are about to: who replaces it then knows what it replaces."""
        deadline_s = time.monotonic() + _EVICTION_WAIT_S
        while True:
            with self._lock:
                self._ledger.read()
                silences_s = self._ledger.silences_s(file_system_now_s(self._root))
                theirs = self._ledger.changes.being_evicted(silences_s, besides=self.journal.name)
            if names.isdisjoint(theirs) or time.monotonic() > deadline_s:
                return
            time.sleep(_EVICTION_POLL_S)

    def superseded(self, packed: dict[str, list[Place]], published: set[str], *, olds: Mapping[str, int]) -> list[Line]:
        """Take the packed versions of published names out of the count; the lines that say what that wastes."""
        lines: list[Line] = []
        for name, places in packed.items():
            killed = shards.supersede(places) if name in published else {}
            if killed and not olds[name]:
                # The row was the entry until now: its bytes leave the entry, and stay in the shard's file.
                lines += [deletion({name: sum(killed.values())}), *waste_lines(self._root, killed)]
        return lines

    def _line_of(self, file: NewFile, size: int, old_bytes: int, claimed_bytes: int) -> Line:
        change, written_us = size - old_bytes - claimed_bytes, self.journal.now_us()
        fields = f"{size}\t{written_us}\t{file.fingerprint8}\t{self.run_id or ''}\t{claimed_bytes}\t{file.name}"
        return Line("p", change, fields, now_us())

    def publish_shard(self, name: str, buffers: Sequence[Bytes], new_bytes: int, *, may_evict: bool) -> int:
        """Publish a shard of which only `new_bytes` have to find room, the rest is of files that will go.

        Returns the bytes that were claimed for it, 0 without a limit.

        Raises:
            StoreFull, StoreWriteError: nothing was published.
        """
        with self.room_for(name, new_bytes, may_evict=may_evict) as claimed_bytes:
            publish(buffers, self._root / name)
        return claimed_bytes

    @contextmanager
    def room_for(self, name: str, new_bytes: int, *, may_evict: bool) -> Iterator[int]:
        """Claim room in a shard's name, which its `p` line uses; an error in the `with` gives it back.

        Raises:
            StoreFull, StoreWriteError: nothing is claimed.
        """
        growths: list[Growth] = []
        if self.budget.limits.limit_bytes is not None:
            growths = [Growth(name, new_bytes)]
            with self._lock:
                self._know_files()
                self.budget.claim(growths, may_evict=may_evict)
        try:
            yield sum(growth.bytes for growth in growths)
        except BaseException:
            with self._lock:
                self.budget.release(growths)
            raise

    def change_limits(self, limits: Settings) -> None:
        """Take other limits from the next put on; room granted under the old ones is given back.

        Raises:
            StoreWriteError: the journal cannot be written.
        """
        with self._lock:
            granted = self.budget.give_back()
            if granted:
                self.journal.append(line("r", -granted))
            self.budget.limits = limits

    def delete(self, name: str) -> bool:
        """Unlink a feature and journal it; False when there was none.

        Raises:
            StoreWriteError: the operating system refused.
        """
        if not removing.is_there(self._root, name):
            return False
        # Announced, so that whoever lists the files meanwhile does not take it for lost: the `d` line follows.
        self.note(line("w", 0, name))
        as_of_us = now_us()
        try:
            removed = removing.remove(self._root, name)
        except BaseException:
            self.note(line("x", 0, name))
            raise
        if removed is None:
            self.note(line("x", 0, name))
            return False
        self.note(deletion({name: removed.bytes}, time_us=as_of_us))
        for one in waste_lines(self._root, removed.shards):
            self.note(one)
        return True

    def note(self, one: Line) -> None:
        """Journal what must not fail because the journal finds no room; errors ignored."""
        # Deleting is how a full disk gets room again, and must not fail because the journal finds none.
        with contextlib.suppress(StoreWriteError):
            self.journal.append(one)

    def set_aside(self, name: str, reason: str) -> str | None:
        """Rename a damaged feature into the quarantine and journal it; returns its path there, None if it was gone.

        Raises:
            StoreWriteError: the operating system refused.
        """
        moved_to = naming.quarantine_name(name)
        removed = removing.set_aside(self._root, name, moved_to)
        if removed is None:
            return None
        logger.warning("%s is damaged (%s); set aside as %s", name, reason, moved_to)
        self.note(deletion({name: removed.bytes}))
        for one in waste_lines(self._root, removed.shards):
            self.note(one)
        return moved_to

    def protect(self, names: Iterable[str], run_id: str) -> None:
        """Mark existing entries as the run's, as long as a process of it is at work."""
        listed = list(names)
        if listed:
            self.journal.append(line("m", 0, run_id, *listed))

    @contextmanager
    def reconciled(self) -> Iterator[View]:
        """All entries, corrected by a listing of the files."""
        self.usage.flush()
        with self._lock:
            table = reconcile(self._root, self._ledger, self.journal)
            changes = self._ledger.changes
            silences_s = self._ledger.silences_s(file_system_now_s(self._root))
            yield View.of(table, changes, changes.active_runs(silences_s))

    def close(self) -> None:
        """Write what is in memory and say that this process is done; a later event opens a new journal."""
        self.usage.flush()
        with self._lock:
            self._ledger.refresh()
            self._fold_if_due()
            self.journal.close(self.budget.give_back())

    def _know_files(self) -> None:
        # A snapshot's absence means that features may lie here that no journal ever mentioned.
        if self._ledger.snapshot is None:
            self._ledger.refresh()
        if self._ledger.snapshot is None:
            reconcile(self._root, self._ledger, self.journal)

    def count_puts(self, count: int) -> None:
        """Fold the journals now and then."""
        with self._lock:
            self._puts += count
            if self._puts >= _FOLD_CHECK_EVERY_PUTS:
                self._puts = 0
                self._ledger.refresh()
                self._fold_if_due()

    def _fold_if_due(self) -> None:
        if not self._ledger.needs_folding:
            return
        self._know_files()  # takes the lease itself, so not while holding it
        with lease(self._root / naming.LEASE, timeout_s=0.0) as is_held:
            if not is_held:
                return  # whoever holds it does the work
            try:
                self._ledger.read()
                if self._ledger.needs_folding:
                    silences_s = self._ledger.silences_s(file_system_now_s(self._root))
                    self._ledger.settle(silences_s)
                    fold(self._root, self._ledger, self.journal, silences_s)
            except StoreWriteError as exc:
                # The features are safe, only the journals stay long; a disk that is full fails the next put.
                logger.warning("the journals could not be folded: %s", exc)


def size_of(path: str | Path) -> int:
    """`st_size`, 0 when there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        # Missing, or unreachable: the write that follows says why.
        return 0
