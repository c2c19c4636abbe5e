"""Takes a feature away wherever it lies, so that no older version of it comes to light; and tells what that wastes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cache_store import naming, opening, shards
from cache_store.atomic import make_folder, publish
from cache_store.errors import StoreWriteError
from cache_store.journal import Line, line, now_us
from cache_store.shards import Killed, remove_file
from cache_store.taking import put_back


class Removed(NamedTuple):
    """What was the feature of a name, and is gone."""

    bytes: int
    shards: dict[str, int]  # of it, bytes that stay in shards until these are rewritten


def is_there(root: Path, name: str) -> bool:
    """Whether there is something to remove, of any kind."""
    return os.path.lexists(f"{root}/{name}") or opening.identity(root, name) is not None


def remove(root: Path, name: str) -> Removed | None:
    """Delete a feature: its rows first, because an older row would come to light behind a loose file.

    None where there is none. What is put once it is gone stays.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    path = f"{root}/{name}"
    removed: Removed | None = None
    while True:
        killed = shards.kill(root, name)
        size = remove_file(path)
        if removed is None and (killed is not None or size is not None):
            removed = _removed(killed, size)
        # Packed, or put back by a packer, between the two? A file that comes after one was removed is a new one.
        is_left = opening.identity(root, name) is not None if removed is None else opening.is_packed(root, name)
        if not is_left:
            return removed


def remove_loose(root: str, name: str) -> bool:
    """As `remove`, of a feature that has its own file, where there are no shards; False where there is none.

    Raises:
        StoreWriteError: the operating system refused.
    """
    return shards.unlink(f"{root}/{name}")


def _removed(killed: Killed | None, loose_bytes: int | None) -> Removed:
    if loose_bytes is not None or killed is None:
        return Removed(loose_bytes or 0, {})
    return Removed(killed.bytes, killed.shards)


def set_aside(root: Path, name: str, moved_to: str) -> Removed | None:
    """Move a damaged feature to `moved_to`; None where it was gone.

    A packed copy of the same version stays, and is the feature then; an older one does not come to light.

    Raises:
        StoreReadError, StoreWriteError: the operating system refused.
    """
    path, target = root / name, root / moved_to
    try:
        for folder in shards.of(root).view().taken:
            # It gets its name back first; what a packer had taken is older than a file that has it, or the same file.
            with contextlib.suppress(FileNotFoundError):
                put_back(root, name, folder)
        status = os.stat(path)
        older = [
            place
            for place in shards.of(root).view().places(name)
            if (place.bytes, int(place.shard.written_ns[place.row])) != (status.st_size, status.st_mtime_ns)
        ]
        shards.supersede(older)
        make_folder(target.parent)
        os.rename(path, target)
        return Removed(status.st_size, {})
    except FileNotFoundError:
        place = shards.of(root).view().find(name)
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    if place is None:
        return None
    publish([place.shard.content(place.row)], target)
    killed = shards.kill(root, name)
    return None if killed is None else Removed(killed.bytes, killed.shards)


def waste_lines(root: Path, killed: Mapping[str, int]) -> list[Line]:
    """Journal lines that say that so many bytes of these shards are no longer a feature's."""
    known = {f"{naming.PACKED}/{shard.id}": shard for shard in shards.of(root).view().shards}
    lines = []
    for name, size in killed.items():
        shard = known.get(name)
        if shard is not None:
            waste_bytes = shard.file_bytes - int(shard.bytes[shard.counting()].sum())
            time_us = now_us()
            lines.append(line("p", size, waste_bytes, time_us, "", "", 0, name, time_us=time_us))
    return lines
