"""Which features lie in shards, and in which: found by name, told apart by what counts, and taken out of the count."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache_store import naming
from cache_store.errors import DamagedFeature, StoreReadError, StoreWriteError
from cache_store.shard_file import Shard

# A folder that changed this recently may change again without another time stamp.
_SETTLED_AFTER_NS = 50_000_000

logger = logging.getLogger("cache_store")


class Place(NamedTuple):
    """Where a packed feature lies."""

    shard: Shard
    row: int

    @property
    def version(self) -> tuple[int, str]:
        """Of several rows with one name the greatest one is the newest."""
        return int(self.shard.changed_ns[self.row]), self.shard.id

    @property
    def bytes(self) -> int:
        return int(self.shard.bytes[self.row])


_NOTHING_SORTED = (0, np.empty(0, np.int64), np.empty(0, np.int32))


class View:
    """The shards of a store at one moment; what counts in them is asked anew each time."""

    def __init__(self, shards: Sequence[Shard] = (), taken: Sequence[Path] = (), damaged: dict[str, str] | None = None):
        self.shards = list(shards)
        self.taken = list(taken)  # folders of files on their way into a shard
        self.damaged = damaged or {}  # file name -> reason
        self._of_first_shards = _NOTHING_SORTED  # how many they are, and their `_index`

    def places(self, name: str) -> list[Place]:
        """All rows of this name."""
        if not self.shards:
            return []
        hashes, rows = self._index
        hashed = hash(name)
        at = int(hashes.searchsorted(hashed))
        found = []
        while at < len(hashes) and hashes[at] == hashed:
            place = self.place(int(rows[at]))
            if place.shard.name(place.row) == name:
                found.append(place)
            at += 1
        return found

    def find(self, name: str) -> Place | None:
        """The row that is the feature of this name, unless there is a loose file; None where no row counts.

        Raises:
            StoreReadError: the disk.
        """
        counting = [place for place in self.places(name) if place.shard.counts(place.row)]
        if len(counting) < 2:
            return counting[0] if counting else None
        return max(counting, key=lambda place: place.version)

    @cached_property
    def firsts(self) -> np.ndarray[Any, Any]:
        """Where each shard's rows begin when they are counted through all shards, and how many there are."""
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    def place(self, row: int) -> Place:
        """The row that is this one through all shards."""
        number = int(self.firsts.searchsorted(row, side="right")) - 1
        return Place(self.shards[number], row - int(self.firsts[number]))

    def find_all(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """For each name its only row, counted through all shards; -1 where there is none or several.

        Whether a row counts is not looked at, nor whether it has the name: another may have the same hash value.
        """
        hashes, rows = self._index
        wanted = np.fromiter(map(hash, names), np.int64, len(names))
        at = np.minimum(hashes.searchsorted(wanted), len(hashes) - 1)
        after = np.minimum(at + 1, len(hashes) - 1)
        is_one = (hashes[at] == wanted) & ((after == at) | (hashes[after] != wanted))
        return np.where(is_one, rows[at], -1)

    def having(self, names: Sequence[str]) -> list[int]:
        """Positions of the names of which there may be rows here; of all others there are none."""
        if not self.shards or not names:
            return []
        hashes, _ = self._index
        wanted = np.fromiter(map(hash, names), np.int64, len(names))
        at = np.minimum(hashes.searchsorted(wanted), len(hashes) - 1)
        return np.flatnonzero(hashes[at] == wanted).tolist()

    def not_alone(self, shard: Shard, names: Sequence[str]) -> list[int]:
        """Positions of the names, of the rows of a shard, of which other rows may be here as well."""
        ids = [one.id for one in self.shards]
        if shard.id not in ids:
            return list(range(len(names)))
        rows, own = self.find_all(names), ids.index(shard.id)
        is_own = (self.firsts[own] <= rows) & (rows < self.firsts[own + 1])
        return np.flatnonzero(~is_own).tolist()

    def hashes(self) -> frozenset[int]:
        """The hash values of all names."""
        return frozenset(self._index[0].tolist())

    @cached_property
    def _index(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Hash values of all names, sorted, with the row of each; a dictionary would take ten times the memory."""
        known, hashes, rows = self._of_first_shards
        self._of_first_shards = _NOTHING_SORTED
        new_hashes = np.concatenate([np.empty(0, np.int64), *map(_hashes_of, self.shards[known:])])
        new_rows = np.argsort(new_hashes, kind="stable")
        new_hashes, new_rows = new_hashes[new_rows], new_rows + self.firsts[known]
        if len(hashes):
            places = hashes.searchsorted(new_hashes, side="right")
            new_hashes, new_rows = np.insert(hashes, places, new_hashes), np.insert(rows, places, new_rows)
        return new_hashes, new_rows.astype(np.int32 if len(new_rows) < 2**31 else np.int64)

    def followed_by(self, shards: Sequence[Shard], taken: Sequence[Path], damaged: dict[str, str]) -> View:
        """The view of a later moment; where shards have only been added to these, what is sorted here is used there."""
        view = View(shards, taken, damaged)
        if "_index" in vars(self) and view.shards[: len(self.shards)] == self.shards:
            view._of_first_shards = (len(self.shards), *self._index)
        return view

    def winners(self) -> list[np.ndarray[Any, Any]]:
        """For each shard which rows count and are the newest of their name.

        Raises:
            StoreReadError: the disk.
        """
        counting = [shard.counting() for shard in self.shards]
        own = [_hashes_of(shard)[counts] for shard, counts in zip(self.shards, counting, strict=True)]
        sorted_hashes = np.sort(np.concatenate([np.empty(0, np.int64), *own]))
        if not (sorted_hashes[1:] == sorted_hashes[:-1]).any():
            return counting
        hashes, rows = self._index
        all_counting = np.concatenate(counting)
        hashes, rows = hashes[all_counting[rows]], rows[all_counting[rows]]
        is_double = np.zeros(len(hashes), bool)
        is_double[1:] = hashes[1:] == hashes[:-1]
        for at in np.flatnonzero(is_double):
            for row in rows[at - 1 : at + 1].tolist():
                place = self.place(row)
                newest = self.find(place.shard.name(place.row))
                all_counting[row] = newest is not None and newest[:2] == place[:2]
        return np.split(all_counting, self.firsts[1:-1])

    def names(self) -> Iterator[str]:
        """The names of all packed features."""
        for shard, is_winner in zip(self.shards, self.winners(), strict=True):
            names = shard.names()
            yield from (names[row] for row in np.flatnonzero(is_winner))


_HASHES = "_hashes_of_names"


def _hashes_of(shard: Shard) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] | None = getattr(shard, _HASHES, None)
    if found is None:
        names = shard.names()
        found = np.fromiter(map(hash, names), np.int64, len(names))
        setattr(shard, _HASHES, found)
    return found


EMPTY = View()


class Shards:
    """The shards under one root, listed again whenever their folder changes. Safe for threads and forks."""

    def __init__(self, root: Path) -> None:
        self._folder = root / naming.PACKED
        self._path = str(self._folder)
        self._known: tuple[tuple[int, int] | None, View] = (None, EMPTY)

    def view(self) -> View:
        """The shards as they are now.

        Raises:
            StoreReadError: the folder cannot be listed.
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return EMPTY
        except OSError as exc:
            raise StoreReadError(self._path, exc) from exc
        signature = (status.st_ino, status.st_mtime_ns)
        known, view = self._known
        if signature != known:
            now_ns = time.time_ns()
            view = self._listed(view)
            is_settled = now_ns - status.st_mtime_ns > _SETTLED_AFTER_NS
            self._known = (signature if is_settled else None, view)
        return view

    def forget(self) -> None:
        """List the folder again at the next question."""
        self._known = (None, self._known[1])

    def _listed(self, before: View) -> View:
        try:
            names = os.listdir(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return EMPTY
        except OSError as exc:
            raise StoreReadError(self._path, exc) from exc
        known = {shard.id: shard for shard in before.shards}
        places = {id_: place for place, id_ in enumerate(known)}
        names.sort(key=lambda name: (places.get(name, len(places)), name))  # new ones last, as `followed_by` wants them
        shards, damaged = [], {}
        for name in names:
            if naming.is_shard(f"{naming.PACKED}/{name}"):
                shard = known.get(name)
                try:
                    shards.append(shard or Shard(self._folder / name))
                except FileNotFoundError:
                    continue
                except DamagedFeature as exc:
                    if name not in before.damaged:
                        logger.warning("%s", exc)
                    damaged[name] = exc.reason
        taken = [self._folder / name for name in names if name.endswith(naming.TAKEN_SUFFIX)]
        same = (shards, taken) == (before.shards, before.taken) and damaged == before.damaged
        return before if same else before.followed_by(shards, taken, damaged)


_known: weakref.WeakValueDictionary[str, Shards] = weakref.WeakValueDictionary()


def of(root: Path) -> Shards:
    """The shards of a store, the same object for everyone in this process as long as someone holds it."""
    found = _known.get(str(root))
    return _known.setdefault(str(root), Shards(root)) if found is None else found


class Killed(NamedTuple):
    """What is no longer the feature of its name."""

    bytes: int  # of the file that a reader would have found
    shards: dict[str, int]  # bytes that counted, by the relative name of the shard


def kill(root: Path, name: str) -> Killed | None:
    """Take a name out of all shards, and of what is on its way into one; None where nothing counted.

    Listed again until nothing is left: a shard may be published, or rewritten, meanwhile.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    shards = of(root)
    size, killed, is_found = 0, dict[str, int](), False
    while True:
        view = shards.view()
        places = [place for place in view.places(name) if not place.shard.is_dead(place.row)]
        for place in places:
            if place.shard.counts(place.row):
                size, is_found = place.bytes, True
                shown = f"{naming.PACKED}/{place.shard.id}"
                killed[shown] = killed.get(shown, 0) + place.bytes
            place.shard.mark("dead", [place.row])
        removed = [taken for folder in view.taken if (taken := remove_file(folder / name)) is not None]
        if removed:
            size, is_found = removed[0], True
        if not all(place.shard.has_its_name() for place in places):
            shards.forget()  # rewritten this moment: the mark has to be set in the shard that took its place
        if not places and not removed:
            return Killed(size, killed) if is_found else None


def remove_file(path: str | Path) -> int | None:
    """Unlink a file and return its size; None where there was none.

    Raises:
        StoreWriteError: the operating system refused.
    """
    try:
        size = os.lstat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    return size if unlink(path) else None


def unlink(path: str | Path) -> bool:
    """Remove a file; False where there was none.

    Raises:
        StoreWriteError: the operating system refused.
    """
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    return True


def supersede(places: Sequence[Place]) -> dict[str, int]:
    """Take older versions out of the count; bytes that counted by shard. Errors ignored: a loose file wins anyway."""
    killed: dict[str, int] = {}
    for place in places:
        with contextlib.suppress(StoreWriteError, StoreReadError):
            if place.shard.counts(place.row):
                shown = f"{naming.PACKED}/{place.shard.id}"
                killed[shown] = killed.get(shown, 0) + place.bytes
            place.shard.mark("dead", [place.row])
    return killed
