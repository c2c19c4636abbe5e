"""Publishes bytes under a name in one step: readers see the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

from cache_store import naming
from cache_store.errors import EntryExists, StoreWriteError
from cache_store.file_systems import is_on_local_disk

Bytes = bytes | memoryview
_File = TypeVar("_File")
_WRITEV_BUFFERS = 64
_SYNCFS_FROM_FILES = 8  # below, flushing the few files alone does not wait for other programs' data
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def _free(path: str) -> bool:
    return False


def publish(
    buffers: Iterable[Bytes],
    path: str | Path,
    *,
    create_only: bool = False,
    is_taken: Callable[[str], bool] = _free,
) -> None:
    """Write the buffers one after another to a temporary file and give it the name `path`, replacing the old.

    File and folder are flushed to the disk before this returns. Missing folders are created. Permissions are
    what the umask gives. On any error the old file is untouched. With `create_only` a new file goes again when
    `is_taken(path)` says that the name belongs to something that lies elsewhere.

    Raises:
        EntryExists: with `create_only`, when the name is taken.
        StoreWriteError: the operating system refused; nothing was published.
    """
    folder = os.path.dirname(path)
    try:
        temp, fd = _open_temp(folder)
        try:
            try:
                _write_all(fd, buffers)
                os.fsync(fd)
            finally:
                os.close(fd)
            if create_only:
                _publish_new(temp, str(path), is_taken)
                _remove_quietly(temp)
            else:
                os.replace(temp, path)
        except BaseException:
            _remove_quietly(temp)
            raise
        flush_folder(folder)
    except FileExistsError as exc:
        raise EntryExists(str(path)) from exc
    except OSError as exc:
        raise StoreWriteError(str(path), exc) from exc


def give_free_name(file: str | Path, path: str | Path) -> None:
    """Give a file a name that nothing has; its old name is gone, or is the caller's to remove.

    By a link, because O_EXCL on the new name would show readers an empty file for a moment; where the file system has
    none, by a rename that replaces nothing, which is Linux's own.

    Raises:
        FileExistsError: the name is taken.
        OSError: as the system says, or that the file system has neither.
    """
    try:
        os.link(file, path)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        number = _rename_no_replace(os.fsencode(file), os.fsencode(path))
        if number in (errno.EINVAL, *_NO_LINKS):
            reason = "the file system has neither hard links nor renameat2's RENAME_NOREPLACE; put the store on another"
            raise OSError(exc.errno, reason, str(path)) from exc
        if number:
            raise OSError(number, os.strerror(number), str(path)) from exc


def _rename_no_replace(file: bytes, path: bytes) -> int:
    """Rename unless there is one of this name; returns the system's error number, 0 for none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return errno.ENOSYS
    return ctypes.get_errno() if rename(_AT_FDCWD, file, _AT_FDCWD, path, _RENAME_NOREPLACE) else 0


def _publish_new(temp: str, path: str, is_taken: Callable[[str], bool]) -> None:
    mine = os.stat(temp)
    give_free_name(temp, path)
    # Asked only now: until the name was given, what had it may have gone elsewhere.
    if is_taken(path):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(mine, os.stat(path)):
                os.unlink(path)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        # Else another writer has replaced the new file, or a packer has taken it.


def publish_many(
    files: Sequence[tuple[Iterable[Bytes], str]],
    *,
    published: Callable[[int], None],
    create_only: bool = False,
    is_taken: Callable[[str], bool] = _free,
) -> None:
    """Publish files with one flush for all contents, then the renames, then one flush for each folder.

    More files than a process may have open go in parts, one after another. `published(position)` is called after each
    rename. On an error files not yet renamed are removed, and the folders of the others are flushed as well.
    `create_only` and `is_taken` as in `publish`.

    Raises:
        EntryExists: with `create_only`, when a name is taken; files before it are published.
        StoreWriteError: the operating system refused; what `published` was not called for is as it was.
    """
    for start, part in _parts(files):
        _publish_part(part, start, published, create_only, is_taken)


def _publish_part(
    files: Sequence[tuple[Iterable[Bytes], str]],
    start: int,
    published: Callable[[int], None],
    create_only: bool,
    is_taken: Callable[[str], bool],
) -> None:
    temps: list[tuple[str, int]] = []
    done = 0
    path = ""
    try:
        for buffers, path in files:
            temps.append(_open_temp(os.path.dirname(path)))
            _write_all(temps[-1][1], buffers)
        _flush_all([fd for _, fd in temps])
        try:
            for (temp, _), (_, path) in zip(temps, files, strict=True):
                if create_only:
                    _publish_new(temp, path, is_taken)
                else:
                    os.replace(temp, path)
                done += 1
                published(start + done - 1)
        finally:
            for folder in sorted({os.path.dirname(path) for _, path in files[:done]}):
                flush_folder(folder)
    except FileExistsError as exc:
        raise EntryExists(path) from exc
    except OSError as exc:
        raise StoreWriteError(path, exc) from exc
    finally:
        for _, fd in temps:
            os.close(fd)
        for temp, _ in temps if create_only else temps[done:]:
            _remove_quietly(temp)


def publish_new(files: Sequence[tuple[Bytes, str, int]], *, flush: bool = True) -> list[bool]:
    """Publish files (content, path, time of writing in ns) unless their names are taken; for each whether it was.

    One flush for all contents, one for each folder, in parts as `publish_many`; without `flush` a power loss may leave
    damaged files.

    Raises:
        StoreWriteError: the operating system refused; some may be published.
    """
    return [is_new for _, part in _parts(files) for is_new in _publish_new_part(part, flush=flush)]


def _publish_new_part(files: Sequence[tuple[Bytes, str, int]], *, flush: bool) -> list[bool]:
    temps: list[tuple[str, int]] = []
    path = ""
    made: list[bool] = []
    try:
        for content, path, written_ns in files:
            temps.append(_open_temp(os.path.dirname(path)))
            _write_all(temps[-1][1], [content])
            os.utime(temps[-1][1], ns=(written_ns, written_ns))
        if flush:
            _flush_all([fd for _, fd in temps])
        for (temp, _), (_, path, _) in zip(temps, files, strict=True):
            try:
                give_free_name(temp, path)
                made.append(True)
            except FileExistsError:
                made.append(False)
        for path in sorted({os.path.dirname(path) for _, path, _ in files} if flush else ()):
            flush_folder(path)
    except OSError as exc:
        raise StoreWriteError(path, exc) from exc
    finally:
        for temp, fd in temps:
            os.close(fd)
            _remove_quietly(temp)
    return made


def _parts(files: Sequence[_File]) -> Iterator[tuple[int, Sequence[_File]]]:
    """Yield parts of `files`, with where they start, that leave most of the files that a process may open to others."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at_once = len(files) if soft == resource.RLIM_INFINITY else max(1, soft // 4)
    for start in range(0, len(files), max(1, at_once)):
        yield start, files[start : start + at_once]


def create_only(content: bytes, path: Path) -> bool:
    """Publish a small file unless one is there already; False when another writer was first.

    Raises:
        StoreWriteError: the operating system refused.
    """
    try:
        temp, fd = _open_temp(path.parent)
        try:
            try:
                _write_all(fd, [content])
                os.fsync(fd)
            finally:
                os.close(fd)
            give_free_name(temp, path)
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


def flush_folder(folder: str | Path) -> None:
    """Flush a folder's entries, without which a rename may not survive a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Some network file systems cannot flush a folder, and keep its entries safe by themselves.
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _flush_all(fds: Sequence[int]) -> None:
    """Flush several open files of one file system; in one call where that is known to report errors."""
    if len(fds) >= _SYNCFS_FROM_FILES and _syncfs(fds[0]):
        return
    for fd in fds:
        os.fsync(fd)


def _syncfs(fd: int) -> bool:
    # Linux reports write errors from syncfs since 5.8; anywhere else each file is flushed by itself.
    if _libc_syncfs is None or not is_on_local_disk(fd):
        return False
    return bool(_libc_syncfs(fd) == 0)


def _find_syncfs() -> Callable[[int], int] | None:
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or version is None or (int(version[1]), int(version[2])) < (5, 8):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    return cast("Callable[[int], int]", function)


_libc_syncfs = _find_syncfs()


def _open_temp(folder: str | Path) -> tuple[str, int]:
    # In the target folder, because a rename is atomic within one file system only.
    for attempt in range(5):
        temp = f"{folder}/{naming.temp_name()}"
        try:
            return temp, os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            # The folder is new, or another process removed it, emptied, between our two calls.
            if attempt == 4:
                raise
            make_folder(Path(folder))
    raise AssertionError("the loop returns or raises")


def _write_all(fd: int, buffers: Iterable[Bytes]) -> None:
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    while views:
        # Linux writes at most 2 GiB and 1024 buffers per call, and a nearly full disk less.
        written = os.writev(fd, views[:_WRITEV_BUFFERS])
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if written:
            views[0] = views[0][written:]


def _remove_quietly(temp: str) -> None:
    # The first error is the one to report; a left temporary file is swept a day later.
    with contextlib.suppress(OSError):
        os.unlink(temp)
