"""What the store holds, from a snapshot and the tails of all processes' journals, in three depths.

- The total alone, before each grant of room: the snapshot's first line and the last line of every journal.
- The changes since the snapshot, for an evictor: every new line of every journal.
- The table of all entries, for `stats`, a plan or a compactor: the whole snapshot as well.

Nobody lists files for any of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cache_store import naming, snapshot
from cache_store.accounts import Changes, Event, Tail, events, in_order_of_time
from cache_store.errors import StoreWriteError
from cache_store.file_systems import READ_FLAGS, open_regular
from cache_store.journal import Journal, Line, line
from cache_store.opening import entry_of
from cache_store.snapshot import Snapshot

if TYPE_CHECKING:
    from pyarrow import Table

_FOLD_TAIL_BYTES = 1 << 20
_FOLD_TAIL_BYTES_PER_ENTRY = 32
_FOLD_NEW_JOURNALS = 32
_LAST_LINE_BYTES = 1 << 12


class Ledger:
    """A view of the accounting under `root`, as of the last `refresh`, `read` or `table`. One thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._journals = root / naming.JOURNALS
        self._is_read = False
        self._begin()

    def _begin(self) -> None:
        self._number: int | None = None
        self.snapshot: Snapshot | None = None
        self._changes: Changes | None = None
        self._base: dict[str, Tail] = {}
        self._base_bytes = 0
        self._ends: dict[str, tuple[int, int]] = {}  # journal -> its length when last looked at, its sum there
        self.total_bytes = 0  # published and granted, as the sums of all journals tell
        self._tail_bytes = 0

    @property
    def changes(self) -> Changes:
        """What happened since the snapshot; only after `read`."""
        if self._changes is None:
            raise RuntimeError("read() the ledger before asking for its changes")
        return self._changes

    @property
    def read_bytes(self) -> int:
        """As `total_bytes`, of just those lines that `changes` has: others come in while it reads."""
        bases = ((tail, self._base.get(name)) for name, tail in self.changes.tails.items())
        return self._base_bytes + sum(tail.sum - (base.sum if base else 0) for tail, base in bases)

    @property
    def needs_folding(self) -> bool:
        """Whether the journals have grown so long that a new snapshot costs little per event."""
        entries = self.snapshot.entries if self.snapshot else 0
        tail_limit = max(_FOLD_TAIL_BYTES, _FOLD_TAIL_BYTES_PER_ENTRY * entries)
        return self._tail_bytes > tail_limit or len(self._ends.keys() - self._base) > _FOLD_NEW_JOURNALS

    @property
    def is_outdated(self) -> bool:
        """Whether the snapshot that was read no longer counts."""
        if self._number is None:
            return snapshot.newest(self._root) is not None
        return os.path.exists(self._path_of(self._number + 1)) or not os.path.exists(self._path_of(self._number))

    def refresh(self) -> None:
        """Find the total anew; a few system calls for each journal."""
        # A compactor may fold journals into a new snapshot and remove them while we read: then begin again.
        for _ in range(20):
            if not self._is_read:
                self._read_snapshot()
            self._sum_up()
            if not self.is_outdated:
                return
            self.forget()

    def read(self) -> None:
        """As `refresh`, and read every new event."""
        for _ in range(20):
            self.refresh()
            if self._changes is None:
                self._changes = self._changes_at_snapshot()
            self._read_tails(self._changes)
            if not self.is_outdated:
                return

    def is_silent_about(self, names: Collection[str]) -> bool:
        """Whether nobody has said anything about these entries since `read`; asked after a look at their files."""
        if not names:
            return True
        now = Ledger(self._root)
        now.read()
        before, after, writing = self.changes.entries, now.changes.entries, now.changes.being_written
        # A deleted entry is None there, which is not the same as nothing.
        return now._number == self._number and all(
            name not in writing and after.get(name, "nothing") == before.get(name, "nothing") for name in names
        )

    def table(self) -> Table | None:
        """All entries as the books know them, after `read`; None when there is no sound snapshot."""
        from cache_store import entry_table

        if self.snapshot is None:
            return None
        try:
            parts = [self.snapshot.table(pool) for pool in ("small", "large")]
        except (OSError, ValueError):
            # Damaged, or replaced this moment: the files themselves answer.
            return None
        return entry_table.merged(entry_table.concatenated(parts), self.changes)

    def forget(self) -> None:
        """Read everything anew at the next `refresh`."""
        self._is_read = False

    def silences_s(self, now_s: float) -> dict[str, float]:
        """How long each journal has not been touched, by the file system's clock `now_s`."""
        silences = {}
        for name in _journal_names(self._journals):
            try:
                silences[name] = now_s - os.stat(self._journals / name).st_mtime
            except OSError:
                # Removed since the listing: absent counts as silent for ever.
                continue
        return silences

    def settle(self, silences_s: dict[str, float]) -> list[Line]:
        """Take over from dead writers, after `read`: a killed one may have published a file without saying so.

        Returns what such a writer would have journalled, for a caller who goes on without writing a snapshot.
        """
        lines = []
        of_the_dead = self.changes.finish(silences_s)
        announced = self.changes.being_written
        for name in of_the_dead:
            if name in announced:
                continue  # by a living process, who will say what became of it
            before = self.changes.entries.get(name)
            found = self.changes.entries[name] = entry_of(self._root, name)
            if found is not None and (before is None or before.bytes != found.bytes):
                change = found.bytes - (before.bytes if before else 0)
                lines.append(line("p", change, found.bytes, found.written_us, "", "", 0, name))
        return lines

    def fold(self, own: Journal, table: Table, silences_s: dict[str, float]) -> None:
        """Write a snapshot of `table`, which is the entries after `settle`, and remove finished journals.

        The caller holds the lease, which saves work: of two compactors the second leaves it to the first.

        Raises:
            StoreWriteError: the operating system refused.
        """
        from cache_store import entry_table

        changes = self.changes
        # Those that are no longer there were folded earlier; those that came since have just been written to.
        silences_s = {name: silences_s.get(name, 0.0) for name in _journal_names(self._journals)}
        for name in changes.tails.keys() - silences_s.keys():
            del changes.tails[name]
        finished = {name: tail for name, tail in changes.tails.items() if tail.is_finished(silences_s[name])}
        table = entry_table.keep_runs(table, changes.active_runs(silences_s))
        if not self.is_outdated and snapshot.write(self._root, self._number, table, changes):
            for name, tail in finished.items():
                self._remove(name, tail, own)
        self.forget()

    def _remove(self, name: str, tail: Tail, own: Journal) -> None:
        path = self._journals / name
        try:
            with open_regular(path) as file:
                os.unlink(path)
                # A process taken for dead may have written until just now; after the unlink it notices by itself.
                file.seek(tail.offset)
                late = list(events(file.read()))
        except OSError:
            # Another compactor was first, or the store is not ours to tidy: the snapshot is right either way.
            return
        lines = [_again(fields) for fields in late if fields[0] in ("p", "d", "u", "n", "m")]
        if lines:
            try:
                own.append(*lines)
            except StoreWriteError:
                # Hints are lost, features are not; the next scan finds them.
                return

    def _path_of(self, number: int) -> Path:
        return self._root / naming.snapshot_path(number)

    def _read_snapshot(self) -> None:
        self._begin()
        self._is_read = True
        self._number = snapshot.newest(self._root)
        self.snapshot = None if self._number is None else snapshot.read(self._path_of(self._number))
        if self.snapshot is not None:
            self._base = self.snapshot.tails()
            self._base_bytes = self.snapshot.published_bytes + self.snapshot.granted_bytes

    def _changes_at_snapshot(self) -> Changes:
        changes = Changes()
        if self.snapshot is not None:
            changes.tails = self.snapshot.tails()
            changes.published_bytes = self.snapshot.published_bytes
            changes.small_bytes = self.snapshot.small_bytes
            try:
                changes.counters = self.snapshot.counters()
            except (OSError, ValueError):
                # Statistics only; the entries' own sections are checked where they are read.
                changes.counters = {}
        return changes

    def _sum_up(self) -> None:
        ends: dict[str, tuple[int, int]] = {}
        total_bytes, tail_bytes = self._base_bytes, 0
        for name in _journal_names(self._journals):
            base = self._base.get(name) or Tail()
            length, sum_there = _end_of(self._journals / name, self._ends.get(name, (base.offset, base.sum)))
            ends[name] = (length, sum_there)
            total_bytes += sum_there - base.sum
            tail_bytes += length - base.offset
        self._ends, self.total_bytes, self._tail_bytes = ends, total_bytes, tail_bytes

    def _read_tails(self, changes: Changes) -> None:
        streams = []
        for name in self._ends:
            tail = changes.tails.setdefault(name, Tail())
            chunk = _read_from(self._journals / name, tail.offset)
            complete = chunk.rfind(b"\n") + 1  # a line still being written is read the next time
            if complete:
                tail.offset += complete
                tail.sum = _last_sum(chunk[:complete], tail.sum) or 0
                streams.append((tail, events(chunk[:complete])))
        for tail, fields in in_order_of_time(streams):
            try:
                changes.apply(tail, fields)
            except (ValueError, IndexError):
                # A torn line of a crashed writer; the scan of `stats` and `verify` finds what it meant.
                continue


def _again(fields: Event) -> Line:
    change = int(fields[1])
    if fields[0] == "p":
        change, fields[8] = change + int(fields[8]), "0"  # the grant that it used is no longer in the books
    return Line(fields[0], change, "\t".join(fields[4:]), int(fields[3]))


def _journal_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".journal"))
    except OSError:
        # No folder yet: nothing was ever written here.
        return []


def _end_of(path: Path, before: tuple[int, int]) -> tuple[int, int]:
    """The length of a journal's whole lines and the sum in the last one; `before` is what they were."""
    try:
        fd = os.open(path, READ_FLAGS)
    except OSError:
        # Removed by a compactor since the listing, or unreadable: the next snapshot says what it held.
        return before
    try:
        length = os.fstat(fd).st_size
        for reach in (_LAST_LINE_BYTES, length):  # a `w` line of a large batch may be longer than the first
            start = max(before[0], length - reach)
            chunk = os.pread(fd, max(0, length - start), start)
            # What lies before the first line end may be half a line.
            first = 0 if start == before[0] else chunk.find(b"\n") + 1
            last = _last_sum(chunk[first:], None)
            if last is not None:
                return start + chunk.rfind(b"\n") + 1, last
        return before
    except OSError:
        return before
    finally:
        os.close(fd)


def _last_sum(chunk: bytes, otherwise: int | None) -> int | None:
    """The running sum of the last sound whole line of `chunk`."""
    end = chunk.rfind(b"\n")
    while end >= 0:
        start = chunk.rfind(b"\n", 0, end) + 1
        fields = chunk[start:end].split(b"\t", 4)
        if len(fields) == 5 and len(fields[0]) == 1:
            try:
                return int(fields[2])
            except ValueError:
                pass  # torn: the one before it counts
        end = start - 1
    return otherwise


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= offset:
                return b""
            file.seek(offset)
            return file.read(size - offset)
    except OSError:
        # Removed by a compactor since the listing, or unreadable: the next snapshot says what it held.
        return b""
