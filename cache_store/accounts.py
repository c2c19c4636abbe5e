"""What the journals say has happened since the last snapshot: changed entries, reads, marks, grants and counters."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import NamedTuple

from cache_store.naming import is_small
from cache_store.processes import Owner, is_alive

# Announced beside the files of a batch that an evictor is about to unlink; no feature can be called so.
EVICTING = ".evicting"

Event = list[str]  # the fields of one journal line; the fourth is its time in microseconds


class Entry(NamedTuple):
    """One feature as the store's books know it; times in microseconds since 1970."""

    bytes: int
    written_us: int
    used_us: int
    fingerprint8: str  # "" when unknown
    runs: str  # ids of the runs that put or protect it, joined by ","


_entry: Callable[[tuple[int, int, int, str, str]], Entry] = partial(tuple.__new__, Entry)  # at a third of its cost


@dataclass
class Counters:
    """Events of one data set since the store's statistics began."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    damaged: int = 0
    unread: int = 0  # evictions, soon after they were written, of entries that nobody had read

    def add(self, hits: int, misses: int, evictions: int, damaged: int, unread: int) -> None:
        self.hits += hits
        self.misses += misses
        self.evictions += evictions
        self.damaged += damaged
        self.unread += unread


@dataclass
class Tail:
    """How far one journal has been read, and what it has open."""

    offset: int = 0
    sum: int = 0  # of the changes up to there
    granted: int = 0  # bytes of room that its process may still fill
    owner: Owner | None = None
    is_closed: bool = False
    writing: set[str] = field(default_factory=set)  # files announced, not yet published, deleted or given up

    def is_finished(self, silent_s: float) -> bool:
        """Whether nothing more is to be expected in this journal."""
        if self.is_closed:
            return True
        if self.owner is None:
            return silent_s >= 60.0  # created, but its first line not yet written
        return not is_alive(self.owner, silent_s=silent_s)


class Changes:
    """The journals' events on top of a snapshot, applied in the order of their time."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry | None] = {}  # written or, with None, deleted
        self.used: dict[str, int] = {}  # entries of the snapshot that were read, and when last
        self.runs: dict[str, str] = {}  # entries of the snapshot that runs protect
        self.tails: dict[str, Tail] = {}
        self.counters: dict[str, Counters] = {}
        self.published_bytes = 0  # the snapshot's and these; as exact as the journals
        self.small_bytes = 0  # the part of it in small entries

    @property
    def granted_bytes(self) -> int:
        """Room that writers may still fill."""
        return sum(tail.granted for tail in self.tails.values())

    @property
    def being_written(self) -> set[str]:
        return set().union(*(tail.writing for tail in self.tails.values()))

    def being_evicted(self, silent_s: Mapping[str, float], *, besides: str | None) -> set[str]:
        """Files that living processes, besides the one with this journal, are about to unlink."""
        others = ((name, tail) for name, tail in self.tails.items() if name != besides and EVICTING in tail.writing)
        alive = (tail for name, tail in others if not tail.is_finished(silent_s.get(name, 0.0)))
        return set().union(*(tail.writing for tail in alive))

    def apply(self, tail: Tail, fields: Event) -> None:
        """Let one event change the view.

        Raises:
            ValueError, IndexError: a line that a crash or a full disk tore; nothing of it counts.
        """
        kind, change = fields[0], int(fields[1])
        if kind == "p":
            self._put(tail, fields, change)
        elif kind == "w":
            tail.writing.update(fields[4:])
        elif kind == "u":
            first_us = int(fields[3]) - len(fields)
            for position, name in enumerate(fields[4:]):
                self._used(name, first_us + position)
        elif kind == "x":
            tail.writing.difference_update(fields[4:])
        elif kind == "r":
            tail.granted += change
        elif kind == "d":
            self._delete(tail, change, int(fields[4]), fields[5:])
        elif kind == "m":
            for name in fields[5:]:
                self._protect(name, fields[4])
        elif kind == "n":
            self.counters.setdefault(fields[4], Counters()).add(*map(int, fields[5:10]))
        elif kind == "k":
            self.published_bytes += int(fields[4])
        elif kind == "o":
            tail.owner = Owner(fields[4], int(fields[5]), fields[6], fields[7])
        elif kind == "c":
            tail.is_closed, tail.granted = True, 0
            tail.writing.clear()

    def _delete(self, tail: Tail, change: int, small_bytes: int, names: list[str]) -> None:
        tail.writing.difference_update(names)
        self.entries.update(dict.fromkeys(names))
        for noted in (self.used, self.runs):
            for name in names if noted else ():
                noted.pop(name, None)
        self.published_bytes += change
        self.small_bytes -= small_bytes

    def _put(self, tail: Tail, fields: Event, change: int) -> None:
        # The most frequent event: whoever evicts or compacts sees hundreds of thousands of them.
        _, _, _, _, size, written, fingerprint8, runs, granted, name = fields
        new_bytes, used_grant, written_us = int(size), int(granted), int(written)
        tail.granted -= used_grant
        tail.writing.discard(name)
        old = self.entries.get(name)
        if old is not None:
            runs = joined(old.runs, runs)
        if self.runs:
            runs = joined(self.runs.pop(name, ""), runs)
        if self.used:
            self.used.pop(name, None)
        self.entries[name] = _entry((new_bytes, written_us, written_us, fingerprint8, runs))
        grown_bytes = change + used_grant
        self.published_bytes += grown_bytes
        if is_small(new_bytes):
            self.small_bytes += grown_bytes

    def _used(self, name: str, time_us: int) -> None:
        entry = self.entries.get(name)
        if entry is not None:
            if entry.used_us < time_us:
                self.entries[name] = entry._replace(used_us=time_us)
        elif name not in self.entries and self.used.get(name, 0) < time_us:
            self.used[name] = time_us

    def _protect(self, name: str, run_id: str) -> None:
        entry = self.entries.get(name)
        if entry is not None:
            self.entries[name] = entry._replace(runs=joined(entry.runs, run_id))
        elif name not in self.entries:
            self.runs[name] = joined(self.runs.get(name, ""), run_id)

    def finish(self, silent_s: Mapping[str, float]) -> set[str]:
        """Take back what dead or closed processes had been granted; returns the files they were writing.

        `silent_s` tells each journal's silence. The files may have been published without a line to say so.
        """
        names: set[str] = set()
        for journal, tail in self.tails.items():
            if (tail.granted or tail.writing) and tail.is_finished(silent_s.get(journal, float("inf"))):
                names |= tail.writing - {EVICTING}
                tail.writing = set()
                tail.granted = 0
        return names

    def active_runs(self, silent_s: Mapping[str, float]) -> set[str]:
        """The runs that still have a process at work."""
        return {
            tail.owner.run_id
            for name, tail in self.tails.items()
            if tail.owner is not None and tail.owner.run_id and not tail.is_finished(silent_s.get(name, float("inf")))
        }


def joined(runs: str, run_id: str) -> str:
    """Two lists of run ids as one."""
    if not run_id or runs == run_id:
        return runs
    return ",".join(sorted({*runs.split(","), *run_id.split(",")} - {""})) if runs else run_id


_LIST = 0  # of any number of names
_FIELDS = {"o": 8, "r": 5, "p": 10, "n": 10, "k": 5, "c": 5, **dict.fromkeys("wxumd", _LIST)}


def events(chunk: bytes) -> Iterator[Event]:
    """The whole lines of a piece of a journal; torn and foreign ones are left out."""
    for raw in chunk.decode("utf-8", errors="replace").split("\n"):
        fields = raw.split("\t")
        count = _FIELDS.get(fields[0])
        if (count == len(fields) or (count == _LIST and len(fields) > 4)) and fields[3].isdecimal():
            yield fields


def in_order_of_time(streams: Sequence[tuple[Tail, Iterable[Event]]]) -> Iterator[tuple[Tail, Event]]:
    """Merge several journals' events; each journal's own order stays, whatever its host's clock does."""
    if len(streams) == 1:
        ((tail, stream),) = streams
        return zip(repeat(tail), stream)
    tagged = [_tagged(number, tail, stream) for number, (tail, stream) in enumerate(streams)]
    return ((tail, fields) for _, _, _, tail, fields in heapq.merge(*tagged))


def _tagged(number: int, tail: Tail, stream: Iterable[Event]) -> Iterator[tuple[int, int, int, Tail, Event]]:
    latest_us = 0
    for position, fields in enumerate(stream):
        latest_us = max(latest_us, int(fields[3]))
        yield latest_us, number, position, tail, fields
