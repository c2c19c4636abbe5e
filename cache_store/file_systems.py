"""Which file systems are this machine's own: only there may files be memory-mapped or flushed all at once.

A mapped file that another host truncates or removes ends the process with SIGBUS, which nothing can catch.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from io import FileIO

# Without waiting: a pipe under the name of a feature or a journal must not stop its reader.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

_LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs"))


class NoRegularFile(OSError):
    """A pipe, a device, perhaps one without an end, or the like."""


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Open a file for reading, unbuffered.

    Raises:
        NoRegularFile: there is something else under this name.
        OSError: as `open`, which refuses folders itself.
    """
    file = FileIO(os.fspath(path), opener=lambda name, _: os.open(name, READ_FLAGS))
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NoRegularFile(errno.EINVAL, "no regular file", os.fspath(path))
    except BaseException:
        file.close()
        raise
    return file


def is_on_local_disk(file: int | str) -> bool:
    """Whether an open or named file lies on a file system known to be local; False where that cannot be told."""
    try:
        device = os.fstat(file).st_dev if isinstance(file, int) else os.stat(file).st_dev
    except OSError:
        return False
    return _type_of(device) in _LOCAL


@functools.lru_cache(maxsize=256)
def _type_of(device: int) -> str | None:
    """The file system's type by /proc/self/mountinfo; None for a device that it does not list."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for mount in mounts:
                fields, _, types = mount.partition(" - ")
                if fields.split(" ", 3)[2] == wanted:
                    return types.split(" ", 1)[0]
    except (OSError, IndexError):
        # No Linux, or no /proc: nothing is known.
        return None
    return None
