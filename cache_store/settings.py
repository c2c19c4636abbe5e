"""Opens the store's folder, and keeps its format version and limit."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_store import naming
from cache_store.atomic import create_only, make_folder, publish
from cache_store.errors import StoreFormatError

# 1: text snapshots, journals without running sums. 2: Parquet snapshots. Features are the same in both, and what
# differs are hints: a store of format 1 is read as it is, and its first writer makes it one of format 2.
FORMAT = 2


@dataclass(frozen=True)
class Settings:
    """What a store remembers for every later process; None for no limit."""

    limit_bytes: int | None = None
    soft_limit_bytes: int | None = None

    def changed(self, limit_bytes: int | None, soft_limit_bytes: int | None) -> Settings:
        """With other limits: None leaves one as it is, 0 or less means none.

        Raises:
            ValueError: a soft limit that is not below the limit.
        """
        limit = self.limit_bytes if limit_bytes is None else (limit_bytes if limit_bytes > 0 else None)
        soft = (
            self.soft_limit_bytes if soft_limit_bytes is None else (soft_limit_bytes if soft_limit_bytes > 0 else None)
        )
        if soft is not None and (limit is None or soft >= limit):
            if soft_limit_bytes is not None and limit is None:
                raise ValueError(f"a soft limit of {soft} bytes needs a limit, and there is none; give one too")
            if soft_limit_bytes is not None:
                raise ValueError(f"the soft limit of {soft} bytes is not below the limit of {limit} bytes")
            soft = None
        return Settings(limit, soft)


logger = logging.getLogger("cache_store")


def absolute_root(root: str | os.PathLike[str]) -> Path | str:
    """A store's root that means the same in every working folder: an absolute path, or a URL as it is."""
    return os.fspath(root).rstrip("/") if naming.is_url(root) else Path(os.path.abspath(root))


def is_root(root: str | os.PathLike[str]) -> bool:
    """Whether a store can be opened here without making its folder; of a URL only the opening tells more."""
    return naming.is_url(root) or os.path.isdir(root)


def open_root(root: Path, *, create: bool = True) -> Settings:
    """Make sure that `root` can serve as a store; returns what it remembers.

    Any folder can: features of the earlier scripts may lie in it. A missing one is created, or with `create` False
    left missing.

    Raises:
        StoreFormatError: not a folder, cannot be created or read, or written by a newer version.
    """
    if root.exists() and not root.is_dir():
        raise StoreFormatError(str(root), "there is a file of this name; give a folder")
    try:
        if create:
            make_folder(root)
        if (root / naming.STORE_FOLDER).exists() and not (root / naming.STORE_FOLDER).is_dir():
            raise StoreFormatError(str(root), f"{naming.STORE_FOLDER} in it is a file; move it away")
        if create or root.exists():
            os.listdir(root)
        return remembered(root)
    except OSError as exc:
        reason = f"{exc.strerror or exc}; create the folder or give yourself permission"
        raise StoreFormatError(str(root), reason) from exc


def remembered(root: Path) -> Settings:
    """What a store keeps for every later opening; nothing where its settings are missing or damaged.

    Raises:
        StoreFormatError: written by a newer version.
        OSError: the settings cannot be read.
    """
    path = root / naming.SETTINGS
    try:
        fields = json.loads(path.read_bytes())
        version = fields["format"]
        if not isinstance(version, int) or version > FORMAT:
            raise StoreFormatError(str(root), f"its format {version} is newer than {FORMAT}; upgrade vlm-cache")
        limits = [fields["limit_bytes"], fields.get("soft_limit_bytes")]
    except FileNotFoundError:
        return Settings()
    except (ValueError, KeyError, TypeError) as exc:
        logger.warning("%s is damaged (%s); the store opens without a remembered limit", path, exc)
        return Settings()
    return Settings(*(limit if isinstance(limit, int) else None for limit in limits))


def mark_format(root: Path) -> None:
    """Write the format into a store that has none or an older one; what older journals said is found by a scan.

    Raises:
        StoreFormatError: another process has upgraded the store beyond this version.
        StoreWriteError: the operating system refused.
    """
    path = root / naming.SETTINGS
    if create_only(_content(Settings()), path) or _format_in(path) == FORMAT:
        return
    remember(root, remembered(root))
    logger.info("%s is a store of format %d now", root, FORMAT)
    shutil.rmtree(root / naming.JOURNALS_OF_FORMAT_1, ignore_errors=True)


def _format_in(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(root: Path, settings: Settings) -> None:
    """Write the settings for every later process.

    Raises:
        StoreWriteError: the operating system refused.
    """
    publish([_content(settings)], root / naming.SETTINGS)


def _content(settings: Settings) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(settings)}, sort_keys=True).encode() + b"\n"
