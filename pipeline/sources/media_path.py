"""Where media and annotations lie: a path of this machine, or a URL that fsspec opens."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

# A Hugging Face cache names a repository's folder after its kind, its owner and its name.
_REPOSITORY = re.compile(r"^(?:datasets|models|spaces)--(?:[^/]+?--)?(?P<name>[^/]+)$")


@dataclass(frozen=True, order=True)
class UrlPath:
    """A file or folder behind a URL (`s3://bucket/set`, `zip://a::file:///b.zip`); picklable, never connected."""

    url: str

    def __truediv__(self, relative: str) -> UrlPath:
        # In a chain of file systems the part before the first "::" names what is inside the innermost one.
        inner, chained, outer = self.url.partition("::")
        slash = "" if inner.endswith("/") else "/"
        return UrlPath(f"{inner}{slash}{relative}{chained}{outer}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path; empty for the top of a file system."""
        return PurePosixPath(self.url.partition("::")[0].partition("://")[2]).name

    @property
    def suffix(self) -> str:
        """The name's extension with its dot."""
        return PurePosixPath(self.name).suffix

    def file_system(self) -> tuple[Any, str]:
        """Return fsspec's file system and the path within it.

        Raises:
            ValueError: no such protocol is known, or its package is not installed.
        """
        inner, chained, outer = self.url.partition("::")
        if chained:
            protocol, _, path = inner.partition("://")
            return _archive(f"{protocol}://::{outer}", os.getpid()), path
        from fsspec.core import url_to_fs

        try:
            file_system, path = url_to_fs(self.url)
        except ImportError as exc:
            raise ValueError(f"{self.url}: {exc}") from exc
        return file_system, str(path)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open the file for reading, as bytes. Raises OSError, or what the file system raises."""
        file_system, path = self.file_system()
        opened: IO[Any] = file_system.open(path, mode)
        return opened


@lru_cache(maxsize=8)
def _archive(url: str, process: int) -> Any:
    """Return the file system inside an archive, once for each process.

    It closes the archive when it is dropped, under the files that were opened in it, and a forked process would share
    its place in the archive with its parent.
    """
    from fsspec.core import url_to_fs

    return url_to_fs(url)[0]


MediaPath: TypeAlias = Path | UrlPath


def parse_media_path(text: str) -> MediaPath:
    """Return a path for plain text and for `file://`, and a `UrlPath` for every other URL."""
    if text.startswith("file://") and "::" not in text:
        return Path(text.removeprefix("file://"))
    return UrlPath(text) if "://" in text else Path(text)


def absolute(place: MediaPath) -> MediaPath:
    """Return a local path made absolute, without following links; a URL as it is."""
    return Path(os.path.abspath(place)) if isinstance(place, Path) else place


def data_set_name(place: MediaPath) -> str:
    """Return the name of the data set in a folder: the folder's, or the repository's for a Hugging Face snapshot.

    A snapshot (`datasets--org--name/snapshots/<revision>`) is named by its revision, which changes with every commit.
    The whole of an archive (`zip://::file:///videos.zip`) is called as its file, without extension.
    """
    inner, _, outer = str(absolute(place)).partition("::")
    path = PurePosixPath(inner.partition("://")[2] if "://" in inner else inner)
    if not path.name:
        return PurePosixPath(outer).stem
    parts = path.parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        repository = _REPOSITORY.match(parts[-3])
        if repository:
            return repository["name"]
    return path.name
