"""All that the journals say when they are read in full: entries, reservations, runs and counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cache_store.processes import Owner, is_alive

Event = list[bytes]  # the fields of one journal line


class Entry(NamedTuple):
    """One feature as the journals know it; times in microseconds since 1970."""

    bytes: int
    written_us: int
    used_us: int
    fingerprint8: str  # "" when unknown
    runs: str  # ids of the runs that put or protect it, joined by ","


@dataclass
class Counters:
    """Events since the store's statistics began."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    damaged: int = 0

    def add(self, hits: int, misses: int, evictions: int, damaged: int) -> None:
        self.hits += hits
        self.misses += misses
        self.evictions += evictions
        self.damaged += damaged


@dataclass
class Tail:
    """How far one journal has been read, and what it has open."""

    offset: int = 0
    owner: Owner | None = None
    is_closed: bool = False
    reserved: dict[str, int] = field(default_factory=dict)  # name -> bytes of entries being written

    def is_finished(self, silent_s: float) -> bool:
        """Whether nothing more is to be expected in this journal."""
        if self.is_closed:
            return True
        if self.owner is None:
            return silent_s >= 60.0  # created, but its first line not yet written
        return not is_alive(self.owner, silent_s=silent_s)


class Accounts:
    """Entries by relative path and journals by name, changed by events in the order of their time."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.tails: dict[str, Tail] = {}
        self.counters = Counters()
        self.published_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        return sum(sum(tail.reserved.values()) for tail in self.tails.values())

    def apply(self, tail: Tail, event: Event) -> None:
        """Let one event change the view.

        Raises:
            ValueError: a field that a crash or a full disk tore; nothing else of the event counts.
        """
        kind, change, time_us = event[0], int(event[1]), int(event[2])
        if kind == b"p":
            self._put(tail, event)
        elif kind in (b"r", b"x"):
            _reserve(tail, event[3].decode(), change)
        elif kind == b"d":
            self.forget_entry(event[3].decode())
        elif kind == b"u":
            self._used(event[3].decode(), time_us)
        elif kind == b"m":
            self._protect(event[4].decode(), event[3].decode())
        elif kind == b"n":
            self.counters.add(*map(int, event[3:7]))
        elif kind == b"o":
            host, pid, started, run_id = (part.decode() for part in event[3:7])
            tail.owner = Owner(host, int(pid), started, run_id)
        elif kind == b"c":
            tail.is_closed = True

    def _put(self, tail: Tail, event: Event) -> None:
        size, written_us, fingerprint8, runs, reserved, name = (part.decode() for part in event[3:9])
        if int(reserved):
            _reserve(tail, name, -int(reserved))
        entry = Entry(int(size), int(written_us), int(event[2]), fingerprint8, runs)
        old = self.entries.get(name)
        if old is not None and old.runs and old.runs != runs:
            entry = entry._replace(runs=_joined(old.runs, runs))
        self.set_entry(name, entry)

    def set_entry(self, name: str, entry: Entry) -> None:
        """Correct one entry in this view."""
        old = self.entries.get(name)
        self.published_bytes += entry.bytes - (old.bytes if old else 0)
        self.entries[name] = entry

    def forget_entry(self, name: str) -> None:
        """Drop one entry from this view; unknown names are fine."""
        old = self.entries.pop(name, None)
        self.published_bytes -= old.bytes if old else 0

    def _used(self, name: str, time_us: int) -> None:
        entry = self.entries.get(name)
        if entry is not None and entry.used_us < time_us:
            self.entries[name] = entry._replace(used_us=time_us)

    def _protect(self, name: str, run_id: str) -> None:
        entry = self.entries.get(name)
        if entry is not None:
            self.entries[name] = entry._replace(runs=_joined(entry.runs, run_id))

    def finish(self, silent_s: Mapping[str, float]) -> set[str]:
        """Release what dead or closed processes had reserved, and return the names they were writing.

        `silent_s` tells each journal's silence. The files may have been published without a line to say so.
        """
        names: set[str] = set()
        for journal, tail in self.tails.items():
            if tail.reserved and tail.is_finished(silent_s.get(journal, float("inf"))):
                names.update(tail.reserved)
                tail.reserved.clear()
        return names

    def keep_runs(self, active: set[str]) -> None:
        """Forget finished runs, whose entries anyone may evict."""
        for name, entry in self.entries.items():
            if entry.runs and not active.issuperset(entry.runs.split(",")):
                kept = ",".join(run_id for run_id in entry.runs.split(",") if run_id in active)
                self.entries[name] = entry._replace(runs=kept)

    def active_runs(self, silent_s: Mapping[str, float]) -> set[str]:
        """The runs that still have a process at work."""
        return {
            tail.owner.run_id
            for name, tail in self.tails.items()
            if tail.owner is not None and tail.owner.run_id and not tail.is_finished(silent_s.get(name, float("inf")))
        }


def _joined(runs: str, run_id: str) -> str:
    return ",".join(sorted({*runs.split(","), *run_id.split(",")} - {""}))


def _reserve(tail: Tail, name: str, change: int) -> None:
    remaining = tail.reserved.get(name, 0) + change
    if remaining > 0:
        tail.reserved[name] = remaining
    else:
        tail.reserved.pop(name, None)


_FIELDS = {b"o": 7, b"r": 4, b"x": 4, b"p": 9, b"d": 4, b"m": 5, b"u": 4, b"n": 7, b"k": 3, b"c": 3}


def parsed(raw: bytes) -> Event | None:
    """A line's fields, or None for one that a crash or a full disk tore."""
    event = raw.split(b"\t")
    if _FIELDS.get(event[0]) != len(event):
        return None
    try:
        int(event[1]), int(event[2])
    except ValueError:
        return None
    return event
