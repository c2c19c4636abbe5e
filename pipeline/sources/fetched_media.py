"""Media behind URLs, fetched to a place of this process that keeps within a limit and goes when the process ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import MediaError
from pipeline.sources.media_path import MediaPath, UrlPath

FETCH_LIMIT_BYTES = 8 * 2**30

_PREFIX = "vlm-cache-media-"


@contextmanager
def localise(path: MediaPath, *, limit_bytes: int = FETCH_LIMIT_BYTES) -> Iterator[Path]:
    """Give a path of this machine with the content of `path`, under the same name, for the length of the context.

    A local path is given as it is. What a URL names, a file or a folder, is fetched; what was used last stays until the
    room is needed, so that the steps of an episode fetch their video once.

    The limit holds for what one process has fetched. What is in use at the same time stays, even above it.

    Raises:
        MediaError: it cannot be fetched, or takes more than `limit_bytes` by itself.
    """
    if isinstance(path, Path):
        yield path
        return
    fetched = _FETCHED.take(path, limit_bytes)
    try:
        yield fetched.path
    finally:
        _FETCHED.release(fetched)


@dataclass(eq=False)
class _Fetched:
    path: Path
    folder: Path  # of this file alone, so that it keeps its name
    bytes: int
    users: int = 0


class _FetchedMedia:
    """What one process has fetched, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._media: OrderedDict[UrlPath, _Fetched] = OrderedDict()
        self._place: Path | None = None
        self._place_lock: FileLock | None = None
        self._owner: int | None = None

    def take(self, path: UrlPath, limit_bytes: int) -> _Fetched:
        with self._lock:
            if self._owner != os.getpid():
                # A forked child must neither use nor delete what its parent fetched.
                self._media.clear()
                self._place, self._place_lock = _new_place()
                self._owner = os.getpid()
            if path not in self._media:
                self._media[path] = self._fetch(path, limit_bytes)
            self._media.move_to_end(path)
            fetched = self._media[path]
            fetched.users += 1
            return fetched

    def release(self, fetched: _Fetched) -> None:
        with self._lock:
            fetched.users -= 1

    def _fetch(self, path: UrlPath, limit_bytes: int) -> _Fetched:
        assert self._place is not None
        folder = Path(tempfile.mkdtemp(dir=self._place))
        local = folder / (path.name or "media")
        try:
            file_system, remote = path.file_system()
            is_folder = file_system.isdir(remote)
            size = int(file_system.du(remote) if is_folder else file_system.size(remote) or 0)
            self._make_room(path, size, limit_bytes)
            if is_folder:
                _get_folder(file_system, remote, local)
            else:
                file_system.get_file(remote, str(local))
            # Not every server tells the size before.
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            self._make_room(path, size, limit_bytes)
            return _Fetched(local, folder, size)
        except MediaError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Every file system has its own errors; each of them costs this one unit.
        except Exception as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise MediaError(f"{path} cannot be fetched to {self._place}: {type(exc).__name__}: {exc}") from exc

    def _make_room(self, path: UrlPath, size: int, limit_bytes: int) -> None:
        """Delete what nobody uses, least recently used first, until `size` more bytes fit. Raises `MediaError`."""
        if size > limit_bytes:
            limit = f"at most {limit_bytes:,} are fetched at a time; raise --fetch-limit"
            raise MediaError(f"{path} takes {size:,} bytes, and {limit}")
        held_bytes = sum(fetched.bytes for fetched in self._media.values())
        for other, fetched in list(self._media.items()):
            if held_bytes + size <= limit_bytes:
                return
            if not fetched.users:
                held_bytes -= self._media.pop(other).bytes
                shutil.rmtree(fetched.folder, ignore_errors=True)


_FETCHED = _FetchedMedia()


def _get_folder(file_system: Any, remote: str, local: Path) -> None:
    # A single text would be read as a pattern, in which clip[1].mp4 means clip1.mp4; of two lists nothing is.
    top = remote.strip("/")
    names = [str(name) for name in file_system.find(remote)]
    inside = [name.strip("/")[len(top) :].lstrip("/") for name in names]
    if outside := [name for name in inside if ".." in name.split("/")]:
        raise MediaError(f"{remote} holds {min(outside)!r}, which leads out of it")
    places = [local / name for name in inside]
    for folder in {place.parent for place in places}:
        folder.mkdir(parents=True, exist_ok=True)
    file_system.get(names, list(map(str, places)))


def _new_place() -> tuple[Path, FileLock]:
    """Make this process's folder, and delete those of processes that died: a kill leaves no time to clean up.

    A process holds the lock beside its folder while it lives, and takes it before the folder is there.
    """
    temporary = Path(tempfile.gettempdir())
    for lock_path in temporary.glob(f"{_PREFIX}*.lock"):
        with suppress(OSError, Timeout), FileLock(lock_path, timeout=0):
            shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
            lock_path.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".lock")
    os.close(handle)
    lock = FileLock(name)
    lock.acquire()
    place = Path(name).with_suffix("")
    place.mkdir(mode=0o700)
    atexit.register(_remove_place, place, lock, os.getpid())
    return place, lock


def _remove_place(place: Path, lock: FileLock, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(place, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
