"""The compactor's lease: saves duplicate work among processes; correctness never depends on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


@contextmanager
def lease(path: Path, *, timeout_s: float) -> Iterator[bool]:
    """Hold the lease for the length of a `with`; yields whether this process really has it.

    Without it (another holder for `timeout_s`, a read-only store, a file system without locks) the caller may
    skip the work or do it anyway: both are safe.
    """
    lock = filelock.FileLock(path, timeout=timeout_s, mode=0o666)
    held = False
    try:
        os.makedirs(path.parent, exist_ok=True)
        lock.acquire()
        held = True
    except (filelock.Timeout, OSError, NotImplementedError):
        # Lustre without flock raises ENOSYS; a read-only store EROFS or EACCES.
        pass
    try:
        yield held
    finally:
        if held:
            lock.release()
