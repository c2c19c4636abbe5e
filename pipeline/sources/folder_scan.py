"""Walk a folder in one order on every machine, and refuse what cannot be listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError


def require_folder(root: Path) -> Path:
    """Return `root` made absolute.

    Raises:
        SourceError: it is missing, or no folder.
    """
    root = Path(os.path.abspath(root))
    if not root.exists():
        raise SourceError(f"the data folder {root} does not exist")
    if not root.is_dir():
        raise SourceError(f"{root} is a file; --data names a folder")
    return root


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below `root`, by folder in POSIX order of the names; links are followed, loops are not.

    Raises:
        SourceError: a folder cannot be listed. What cannot be seen would otherwise be missing without a word.
    """
    yield from _files_below(root, frozenset())


def _files_below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as exc:
        raise SourceError(f"the folder {folder} cannot be listed: {exc.strerror}") from exc
    for entry in entries:
        if _is_folder(entry):
            yield from _files_below(Path(entry.path), above | {identity})
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle, or into what cannot be entered: who opens it says so
