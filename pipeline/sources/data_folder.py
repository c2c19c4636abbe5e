"""One data set's folder, here or behind a URL: what is in it, by path relative to it, in one order on every machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.errors import SourceError
from pipeline.sources.folder_scan import files_below, require_folder
from pipeline.sources.media_path import MediaPath, UrlPath, data_set_name


class DataFolder:
    """The folder `root`. Every relative path is POSIX and stays inside; what leads out of the folder is not in it.

    Raises:
        SourceError: the folder is missing, no folder, or a Hugging Face cache folder above its snapshots; or it lies
            behind a URL, and a name in it has `::`.
    """

    def __init__(self, root: MediaPath) -> None:
        self.root: MediaPath = require_folder(root) if isinstance(root, Path) else root
        self.name = data_set_name(self.root)
        if isinstance(self.root, Path):
            _refuse_folder_of_snapshots(self.root)
        elif not self._listed:
            raise SourceError(f"the data folder {self.root} does not exist, or holds no file")

    def place(self, relative: str) -> MediaPath:
        """Return where a relative path leads."""
        return self.root / relative

    def has_file(self, relative: str) -> bool:
        """Return whether there is such a file; links are followed."""
        if not _is_inside(relative):
            return False
        if isinstance(self.root, Path):
            return _is_there((self.root / relative).is_file)
        return str(PurePosixPath(relative)) in self._listed

    def has_folder(self, relative: str) -> bool:
        """Return whether there is such a folder; links are followed."""
        if not _is_inside(relative):
            return False
        if isinstance(self.root, Path):
            return _is_there((self.root / relative).is_dir)
        return str(PurePosixPath(relative)) in self._listed_folders

    def files(self) -> Iterator[str]:
        """Yield every file at any depth, by folder in POSIX order of the names."""
        if isinstance(self.root, Path):
            yield from (path.relative_to(self.root).as_posix() for path in files_below(self.root))
        else:
            yield from self._listed

    def glob(self, pattern: str) -> list[str]:
        """Return the files that match, sorted. `*` stays within one part of the path."""
        if isinstance(self.root, Path):
            found = (path for path in self.root.glob(pattern) if path.is_file())
            return sorted(path.relative_to(self.root).as_posix() for path in found)
        depth = len(PurePosixPath(pattern).parts)
        paths = (PurePosixPath(path) for path in self._listed)
        return [str(path) for path in paths if len(path.parts) == depth and path.match(pattern)]

    def read_bytes(self, relative: str) -> bytes:
        """Return a file's content. Raises OSError."""
        with self.place(relative).open("rb") as file:
            content: bytes = file.read()
        return content

    @cached_property
    def _listed(self) -> dict[str, None]:
        """Every file behind a URL, in order. One listing: a million questions to an object store would take hours."""
        assert isinstance(self.root, UrlPath)
        try:
            file_system, top = self.root.file_system()
            found = file_system.find(top)
        # Every file system has its own errors; each of them means that nothing can be enumerated.
        except Exception as exc:
            raise SourceError(f"the data folder {self.root} cannot be listed: {exc}") from exc
        relative = [str(path)[len(top) :].lstrip("/") for path in found]
        # fsspec would open another file: what is before the "::".
        if chained := [path for path in relative if "::" in path]:
            raise SourceError(f"{self.root} holds {min(chained)!r}: a name with '::' cannot be read there; rename it")
        return dict.fromkeys(sorted((path for path in relative if path), key=lambda path: path.split("/")))

    @cached_property
    def _listed_folders(self) -> frozenset[str]:
        return frozenset(str(folder) for path in self._listed for folder in PurePosixPath(path).parents)


def _is_there(is_what: Callable[[], bool]) -> bool:
    try:
        return is_what()
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:  # no file system has what it refuses to look for
            return False
        raise


def _is_inside(relative: str) -> bool:
    # A path from somebody's annotations must not lead out of the data folder.
    path = PurePosixPath(relative)
    return not path.is_absolute() and ".." not in path.parts


def _refuse_folder_of_snapshots(root: Path) -> None:
    snapshots = root / "snapshots"
    if root.name.startswith(("datasets--", "models--")) and snapshots.is_dir():
        names = sorted(entry.name for entry in os.scandir(snapshots) if entry.is_dir())
        raise SourceError(
            f"{root} is a Hugging Face cache folder; --data names one of its snapshots: "
            f"{', '.join(str(snapshots / name) for name in names) or 'there is none'}"
        )
