"""Opens the store's folder, and keeps its format version and limit."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from cache_store import naming
from cache_store.atomic import make_folder, publish
from cache_store.errors import StoreFormatError

FORMAT = 1

logger = logging.getLogger("cache_store")


def open_root(root: Path) -> int | None:
    """Make sure that `root` can serve as a store; returns the limit in bytes that it remembers, or None.

    Any folder can: features of the earlier scripts may lie in it. A missing one is created.

    Raises:
        StoreFormatError: not a folder, cannot be created or read, or written by a newer version.
    """
    if root.exists() and not root.is_dir():
        raise StoreFormatError(str(root), "there is a file of this name; give a folder")
    try:
        make_folder(root)
        if (root / naming.STORE_FOLDER).exists() and not (root / naming.STORE_FOLDER).is_dir():
            raise StoreFormatError(str(root), f"{naming.STORE_FOLDER} in it is a file; move it away")
        os.listdir(root)
        return _remembered_limit(root)
    except OSError as exc:
        reason = f"{exc.strerror or exc}; create the folder or give yourself permission"
        raise StoreFormatError(str(root), reason) from exc


def _remembered_limit(root: Path) -> int | None:
    path = root / naming.SETTINGS
    try:
        fields = json.loads(path.read_bytes())
        version, limit_bytes = fields["format"], fields["limit_bytes"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        logger.warning("%s is damaged (%s); the store opens without a remembered limit", path, exc)
        return None
    if not isinstance(version, int) or version > FORMAT:
        raise StoreFormatError(str(root), f"its format {version} is newer than {FORMAT}; upgrade vlm-cache")
    return limit_bytes if isinstance(limit_bytes, int) else None


def remember_limit(root: Path, limit_bytes: int | None) -> None:
    """Write the settings for every later process.

    Raises:
        StoreWriteError: the operating system refused.
    """
    fields = {"format": FORMAT, "limit_bytes": limit_bytes}
    publish([json.dumps(fields, sort_keys=True).encode() + b"\n"], root / naming.SETTINGS)
