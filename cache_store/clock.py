"""The file system's own clock: ages of files are judged by it, since hosts' clocks differ."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cache_store import naming


def file_system_now_s(root: Path) -> float:
    """Seconds since 1970 as the store's file system stamps them; this host's clock in a read-only store."""
    probe = root / naming.STORE_FOLDER / naming.temp_name()
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(probe)
    except OSError:
        return time.time()
