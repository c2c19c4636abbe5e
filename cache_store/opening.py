"""Opens a feature by its name wherever it lies: as a loose file, on its way into a shard, or packed in one.

A loose file wins: who writes straight into a shard moves it away first, so none is older than what is packed under its
name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache_store import naming, shards
from cache_store.accounts import Entry
from cache_store.archive import Archive, Record, open_archive, open_content
from cache_store.errors import DamagedFeature
from cache_store.shards import Place, View

Identity = tuple[object, ...]


@contextmanager
def open_feature(root: Path, name: str) -> Iterator[Archive]:
    """Open a feature for the length of a `with`; a packed one is copied into memory, and its checksum verified.

    Raises:
        FileNotFoundError: there is none.
        DamagedFeature, StoreReadError: as `archive.open_archive`.
    """
    with ExitStack() as stack:
        opened = _opened(stack, root, name)
        if opened is None:
            # Unpacked between the looks at files and shards, perhaps; else it is not there.
            opened = _opened(stack, root, name)
        if opened is None:
            raise FileNotFoundError(f"{root}/{name}")
        yield opened


def _opened(stack: ExitStack, root: Path, name: str) -> Archive | None:
    try:
        return stack.enter_context(open_archive(f"{root}/{name}"))
    except FileNotFoundError:
        view = shards.of(root).view()
        if view is shards.EMPTY:
            raise
    for folder in view.taken:
        try:
            return stack.enter_context(open_archive(folder / name))
        except FileNotFoundError:
            continue
    place = view.find(name)
    return None if place is None else stack.enter_context(_open_packed(root, name, place))


@contextmanager
def _open_packed(root: Path, name: str, place: Place) -> Iterator[Archive]:
    problem = place.shard.problem(place.row)
    if problem is not None:
        raise DamagedFeature(f"{root}/{name}", f"{problem} (in {naming.PACKED}/{place.shard.id})")
    with open_content(f"{root}/{name}", place.shard.content(place.row)) as opened:
        yield opened


def read_record(root: Path, name: str) -> Record | None:
    """As `archive.read_record`, of a feature wherever it lies."""
    with open_feature(root, name) as opened:
        return opened.record()


def identity(root: Path, name: str) -> Identity | None:
    """What changes when another version takes this name; None where there is no feature."""
    for _ in range(2):
        try:
            status = os.stat(f"{root}/{name}")
            return ("loose", status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            # No such file, or a folder in the way of it: a miss, unless it is packed.
            view = shards.of(root).view()
        if view is shards.EMPTY:
            return None
        taken = _taken(view, name)
        if taken is not None:
            return ("taken", taken.st_ino, taken.st_mtime_ns, taken.st_size)
        place = view.find(name)
        if place is not None:
            return ("packed", place.shard.id, place.row)
    return None


def is_file(root: Path, name: str) -> bool:
    """Whether a file of this name, or a row of a shard, is there."""
    return entry_of(root, name) is not None


def file_of(root: Path, name: str) -> Path | None:
    """The file that holds a feature: its own, or the shard that it is packed in; None where there is none."""
    for _ in range(2):
        if os.path.lexists(f"{root}/{name}"):
            return root / name
        # Unpacked between the looks at files and shards, perhaps; else it is not there.
        view = shards.of(root).view()
        for folder in view.taken:
            if os.path.lexists(folder / name):
                return folder / name
        place = None if view is shards.EMPTY else view.find(name)
        if place is not None:
            return place.shard.path
    return None


def is_packed(root: Path, name: str) -> bool:
    """Whether a shard holds a feature of this name, or soon will."""
    view = shards.of(root).view()
    return view is not shards.EMPTY and (_taken(view, name) is not None or view.find(name) is not None)


def _taken(view: View, name: str) -> os.stat_result | None:
    for folder in view.taken:
        try:
            return os.stat(folder / name)
        except OSError:
            continue
    return None


def entry_of(root: Path, name: str) -> Entry | None:
    """An entry as its file or row alone tells it, without a loose file's recipe; None where there is no feature."""
    try:
        status = os.stat(f"{root}/{name}")
    except OSError:
        # Deleted since its name was read, or packed.
        view = shards.of(root).view()
        if view is shards.EMPTY:
            return None
        taken = _taken(view, name)
        place = view.find(name) if taken is None else None
        if place is not None:
            written_us = int(place.shard.written_ns[place.row]) // 1000
            return Entry(place.bytes, written_us, written_us, place.shard.fingerprint8(place.row), "")
        if taken is None:
            return None
        status = taken
    if not stat.S_ISREG(status.st_mode):
        return None
    written_us = status.st_mtime_ns // 1000
    return Entry(status.st_size, written_us, written_us, "", "")


def names_in(root: Path, folder: str) -> list[str]:
    """The packed features in a folder, without its name."""
    view, prefix = shards.of(root).view(), f"{folder}/"
    return [name[len(prefix) :] for name in view.names() if name.startswith(prefix)]
