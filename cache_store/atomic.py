"""Publishes bytes under a name in one step: readers see the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from cache_store import naming
from cache_store.errors import StoreWriteError

Bytes = bytes | memoryview


def publish(buffers: Iterable[Bytes], path: Path) -> None:
    """Write the buffers one after another to a temporary file and rename it to `path`, replacing the old.

    File and folder are flushed to the disk before this returns. Missing folders are created. Permissions are
    what the umask gives. On any error the old file is untouched.

    Raises:
        StoreWriteError: the operating system refused; nothing was published.
    """
    try:
        temp, fd = _open_temp(path.parent)
        try:
            try:
                for buffer in buffers:
                    _write_all(fd, buffer)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temp, path)
        except BaseException:
            _remove_quietly(temp)
            raise
        flush_folder(path.parent)
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc


def create_only(content: bytes, path: Path) -> bool:
    """Publish a small file unless one is there already; False when another writer was first.

    Raises:
        StoreWriteError: the operating system refused.
    """
    try:
        temp, fd = _open_temp(path.parent)
        try:
            try:
                _write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            # A link, because O_EXCL on the final name would show readers an empty file for a moment.
            os.link(temp, path)
        except FileExistsError:
            return False
        finally:
            _remove_quietly(temp)
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc
    return True


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, flushed to the disk; safe against others who create or remove them.

    Raises:
        OSError: as the system says.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries, without which a rename may not survive a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_temp(folder: Path) -> tuple[str, int]:
    # In the target folder, because a rename is atomic within one file system only.
    for attempt in range(5):
        temp = os.path.join(folder, naming.temp_name())
        try:
            return temp, os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            # The folder is new, or another process removed it, emptied, between our two calls.
            if attempt == 4:
                raise
            make_folder(folder)
    raise AssertionError("the loop returns or raises")


def _write_all(fd: int, buffer: Bytes) -> None:
    view = memoryview(buffer).cast("B")
    while view.nbytes:
        # Linux writes at most 2 GiB per call, and a nearly full disk less.
        view = view[os.write(fd, view) :]


def _remove_quietly(temp: str) -> None:
    # The first error is the one to report; a left temporary file is swept a day later.
    with contextlib.suppress(OSError):
        os.unlink(temp)
