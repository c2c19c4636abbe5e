"""What the store holds, added up from a snapshot and the tails of all processes' journals.

Read in two depths: the total alone (a few system calls and the new lines), which every writer under a limit
needs before each put, and all accounts, which an evictor, `stats` or a compactor needs. Nobody rescans files
for it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cache_store import naming, snapshot
from cache_store.accounts import Accounts, Entry, Event, Tail, parsed
from cache_store.errors import StoreWriteError
from cache_store.journal import Journal

_FOLD_TAIL_BYTES = 1 << 20
_FOLD_NEW_JOURNALS = 32

Signature = tuple[int, int, int]


class Ledger:
    """A view of the accounting under `root`, as of the last `refresh` or `load`. One thread at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._snapshot = root / naming.SNAPSHOT
        self._journals = root / naming.JOURNALS
        self._signature: Signature | None = None
        self._is_read = False
        self._knows_entries = False
        self._begin()

    def _begin(self) -> None:
        self.has_snapshot = False
        self._accounts = Accounts()
        self._summed_bytes = 0
        self._snapshot_bytes = 0
        self._folded: set[str] = set()
        self._tail_bytes = 0

    @property
    def accounts(self) -> Accounts:
        """Entries, reservations and counters; only after `load`."""
        if not self._knows_entries:
            raise RuntimeError("load() the ledger before asking for its accounts")
        return self._accounts

    @property
    def total_bytes(self) -> int:
        """Published and reserved bytes: exact after `load`, else the sum of all changes."""
        if not self._knows_entries:
            return self._summed_bytes
        return self._accounts.published_bytes + self._accounts.reserved_bytes

    @property
    def error_of_sum(self) -> int:
        """What the sum of changes lacks to be exact, after `load`; races and crashes cause it."""
        return self.total_bytes - self._summed_bytes

    @property
    def needs_folding(self) -> bool:
        """Whether the journals have grown so long that a new snapshot costs little per event."""
        new_journals = len(self._accounts.tails.keys() - self._folded)
        tail_limit = max(_FOLD_TAIL_BYTES, self._snapshot_bytes // 2)
        return self._tail_bytes > tail_limit or new_journals > _FOLD_NEW_JOURNALS

    def refresh(self) -> None:
        """Read what was appended anywhere since the last time; cheap."""
        self._read(with_entries=self._knows_entries)

    def load(self) -> None:
        """As `refresh`, and know every entry."""
        self._read(with_entries=True)

    def settle(self, now_s: float) -> dict[str, float]:
        """Take over from dead writers in the loaded accounts; returns how long each journal has been silent.

        `now_s` is the file system's clock. A writer killed between its rename and its journal line has
        published a file that only its reservation names.
        """
        silences = self.silences_s(now_s)
        for name in self.accounts.finish(silences):
            entry = entry_on_disk(self._root / name)
            if entry is None:
                self.accounts.forget_entry(name)
            else:
                self.accounts.set_entry(name, entry)
        return silences

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

    def fold(self, own: Journal, now_s: float) -> None:
        """Write a snapshot of the loaded accounts and remove the journals of finished processes.

        The caller holds the lease, or accepts that another compactor's snapshot is replaced by an equal one.

        Raises:
            StoreWriteError: the operating system refused.
        """
        accounts = self.accounts
        silences = self.settle(now_s)
        accounts.keep_runs(accounts.active_runs(silences))
        for name in accounts.tails.keys() - silences.keys():
            del accounts.tails[name]  # folded and removed earlier
        finished = [name for name, tail in accounts.tails.items() if tail.is_finished(silences[name])]
        snapshot.write(self._snapshot, accounts)
        self._signature = _signature(self._snapshot)
        self.has_snapshot = True
        self._summed_bytes = self.total_bytes
        self._folded = set(accounts.tails)
        self._tail_bytes = 0
        for name in finished:
            self._remove(name, accounts.tails[name], own)

    def _remove(self, name: str, tail: Tail, own: Journal) -> None:
        path = self._journals / name
        try:
            with open(path, "rb", buffering=0) as file:
                os.unlink(path)
                # A process taken for dead may have written until just now; after the unlink it notices by
                # itself.
                file.seek(tail.offset)
                late = file.read()
        except OSError:
            # Another compactor was first, or the store is not ours to tidy: the snapshot is right either way.
            return
        lines = [raw + b"\n" for raw in late.split(b"\n") if raw[:1] in (b"p", b"d", b"u", b"n", b"m")]
        if lines:
            try:
                own.append(*lines)
            except StoreWriteError:
                # Hints are lost, features are not; the next scan finds them.
                return

    def _read(self, *, with_entries: bool) -> None:
        # A compactor may fold journals into a new snapshot and remove them while we read: then begin again.
        for _ in range(20):
            signature = _signature(self._snapshot)
            if not self._is_read or signature != self._signature or with_entries != self._knows_entries:
                self._read_snapshot(signature, with_entries)
            self._read_tails()
            if _signature(self._snapshot) == self._signature:
                return

    def _read_snapshot(self, signature: Signature | None, with_entries: bool) -> None:
        self._begin()
        self._is_read = True
        self._signature = signature
        self._knows_entries = with_entries
        found = snapshot.read(self._snapshot, with_entries=with_entries)
        if found is not None:
            self.has_snapshot = True
            self._accounts, self._summed_bytes, self._snapshot_bytes = found
            self._folded = set(self._accounts.tails)

    def _read_tails(self) -> None:
        events: list[tuple[int, Tail, Event]] = []
        for name in _journal_names(self._journals):
            tail = self._accounts.tails.setdefault(name, Tail())
            chunk = _read_from(self._journals / name, tail.offset)
            complete = chunk.rfind(b"\n") + 1  # a line still being written is read the next time
            tail.offset += complete
            self._tail_bytes += complete
            for raw in chunk[:complete].split(b"\n"):
                event = parsed(raw)
                if event is None:
                    continue
                self._summed_bytes += int(event[1])
                if self._knows_entries:
                    events.append((int(event[2]), tail, event))
        # In the order of time: one process's delete may follow another's put.
        events.sort(key=lambda timed: timed[0])
        for _, tail, event in events:
            try:
                self._accounts.apply(tail, event)
            except ValueError:
                # A torn line of a crashed writer; the scan of `stats` and `verify` finds what it meant.
                continue


def entry_on_disk(path: Path) -> Entry | None:
    """An entry as its file alone tells it; None when there is no regular file."""
    try:
        status = os.stat(path)
    except OSError:
        # Deleted since its name was read.
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    written_us = status.st_mtime_ns // 1000
    return Entry(status.st_size, written_us, written_us, "", "")


def _signature(path: Path) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _journal_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".journal"))
    except OSError:
        # No folder yet: nothing was ever written here.
        return []


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= offset:
                return b""
            file.seek(offset)
            return file.read(size - offset)
    except OSError:
        # Removed by a compactor since the listing, or unreadable: the next snapshot says what it held.
        return b""
