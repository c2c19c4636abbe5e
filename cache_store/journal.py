"""One process's append-only journal of what it did to the store, and the grammar of its lines.

A line is tab-separated UTF-8: kind, change of the store's total in bytes, the sum of this journal's changes so far,
time in microseconds, then the kind's own fields. The last whole line of each journal is enough for the total.

    o  0         host pid started run          the process opens the journal
    r  +-bytes                                 room is granted to this process, or given back by it
    w  0         name...                       these files are about to be published or deleted
    x  0         name...                       ... and were not
    p  change    bytes written_us fingerprint8 run granted name
                                               published; change = bytes - bytes replaced - bytes of the grant used
    d  -bytes    small name...                 deleted; small = what small entries had of the bytes
    m  0         run name...                   protected from eviction while the run is active
    u  0         name...                       read, in this order, the last at the line's time
    n  0         dataset hits misses evictions damaged unread    since the last such line
    k  change    published                     correction of the total, and which part of it is about published files
    c  -granted                                the process closes the journal

Journals are hints: `reconcile` rebuilds what matters from the files.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cache_store import naming
from cache_store.atomic import make_folder
from cache_store.errors import StoreWriteError
from cache_store.processes import HERE, this_process

_TOUCH_EVERY_S = 60.0
_SKEW_FROM_US = 1_000_000  # below, a host's clock is taken for the file system's


def now_us() -> int:
    """Wall-clock microseconds of this host."""
    return time.time_ns() // 1000


class Line(NamedTuple):
    """A line before it is written: the journal adds its running sum."""

    kind: str
    change: int
    fields: str  # joined by tabs; names carry no tabs or line ends, `naming` refuses them
    time_us: int


def line(kind: str, change: int, *fields: object, time_us: int | None = None) -> Line:
    """One journal line, of now unless `time_us` says otherwise."""
    return Line(kind, change, "\t".join(map(str, fields)), now_us() if time_us is None else time_us)


def deletion(sizes: Mapping[str, int], *, time_us: int | None = None) -> Line:
    """The line that says that these files, of so many bytes, are gone, as of `time_us`: what comes later stays."""
    small_bytes = sum(filter(naming.is_small, sizes.values()))
    return line("d", -sum(sizes.values()), small_bytes, *sizes, time_us=time_us)


class Journal:
    """Appends to this process's own file under `folder`; opened by the first append.

    Events of several hosts are put in order by their times, so all are told by the file system's clock: how far
    this host's is from it shows when the journal is opened.

    Safe for threads. A forked child starts its own file, and a file that a compactor removed is replaced.
    """

    def __init__(self, folder: Path, run_id: str | None) -> None:
        self._folder = folder
        self._run_id = run_id
        self.generation = 0  # changes when a new file takes the place of this one
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._pid = HERE.pid
        self._fd: int | None = None
        self._name: str | None = None
        self._sum = 0
        self._skew_us = 0
        self._touched_s = 0.0

    def now_us(self) -> int:
        """Microseconds since 1970 by the file system's clock, from the first append on."""
        return now_us() + self._skew_us

    @property
    def name(self) -> str | None:
        """The journal's file name, None before the first append."""
        return self._name if self._pid == HERE.pid else None

    def append(self, *lines: Line) -> None:
        """Append whole lines.

        Raises:
            StoreWriteError: the operating system refused.
        """
        self._start_over_after_fork()
        with self._lock:
            try:
                fd = self._open()
                self._write(fd, lines)
                if os.fstat(fd).st_nlink == 0:
                    # A compactor took us for dead and removed the file: what we just wrote is lost with it.
                    self._drop()
                    self._write(self._open(), lines)
            except OSError as exc:
                # A torn line may end the file; the next append must not continue it.
                self._drop()
                raise StoreWriteError(str(self._folder), exc) from exc
            self._touched_s = time.monotonic()

    def _write(self, fd: int, lines: Iterable[Line]) -> None:
        total = self._sum
        rows = []
        for kind, change, fields, time_us in lines:
            total += change
            rows.append(f"{kind}\t{change}\t{total}\t{time_us + self._skew_us}\t{fields}\n")
        _write_whole(fd, "".join(rows).encode())
        self._sum = total

    def tick(self, now_s: float) -> None:
        """Show other hosts that this process lives, once a minute; errors ignored. `now_s` is the monotonic clock."""
        if self._pid != HERE.pid or self._fd is None or now_s - self._touched_s < _TOUCH_EVERY_S:
            return
        self._touched_s = now_s
        # Removed by a compactor? The next append notices and starts a new file.
        with contextlib.suppress(OSError):
            os.utime(self._folder / str(self._name))

    def close(self, granted: int = 0) -> None:
        """Say that nothing more will come and give `granted` bytes back; a later append opens a new journal.

        Errors are ignored: a journal without its last line looks like a dead process's, and is handled as one.
        """
        if self._pid != HERE.pid or self._fd is None:
            return
        with self._lock:
            if self._fd is None:
                return
            with contextlib.suppress(OSError):
                self._write(self._fd, [line("c", -granted)])
            self._drop()

    def _start_over_after_fork(self) -> None:
        # Two processes in one file would tear each other's lines, and the lock may be held by a thread that
        # the child does not have.
        if self._pid != HERE.pid:
            inherited = self._fd
            self._forget()
            if inherited is not None:
                os.close(inherited)

    def _open(self) -> int:
        if self._fd is None:
            make_folder(self._folder)
            name = naming.journal_name()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._folder / name, flags, 0o666)
            self._name = name
            owner = this_process(self._run_id)
            self._skew_us = 0
            self._write(self._fd, [line("o", 0, owner.host, owner.pid, owner.started, owner.run_id)])
            skew_us = os.fstat(self._fd).st_mtime_ns // 1000 - now_us()
            self._skew_us = skew_us if abs(skew_us) >= _SKEW_FROM_US else 0
        return self._fd

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._name = None
        self._sum = 0
        self.generation += 1


def _write_whole(fd: int, payload: bytes) -> None:
    while payload:
        payload = payload[os.write(fd, payload) :]
