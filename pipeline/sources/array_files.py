"""Arrays in `.npy` files and `.npz` archives: their shape without their data, and rows of them without the rest."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import MediaError

# What a zip archive has in front of a member's data: 26 bytes, the lengths of its name and of its extra field.
_LOCAL_HEADER = struct.Struct("<26xHH")


class StoredArray:
    """One array in a file. Its data are read when rows are asked for; no file stays open.

    Rows of a plainly stored array are read by themselves. A compressed one, or one in Fortran's order, is read whole at
    the first rows and kept (`kept_bytes`). `version` is the `_version` of the file whose header told shape and offset.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        offset: int | None,
        version: tuple[int, int],
    ) -> None:
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype
        self._version = version
        self._offset = offset  # of the data in the file; None where they do not lie there plainly
        self._whole: np.ndarray | None = None

    @property
    def kept_bytes(self) -> int:
        """How much memory the object takes beside itself."""
        return 0 if self._whole is None else self._whole.nbytes

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop` (exclusive), as a slice would; the caller's own copy if they lie plainly.

        Raises:
            MediaError: the file, which is named with its folder, cannot be read, was replaced since its header was
                read, or is shorter than that says.
        """
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        if self._offset is None:
            if self._whole is None:
                self._whole = self._loaded()
            return self._whole[start:stop]
        shape = (max(0, stop - start), *self.shape[1:])
        buffer = bytearray(math.prod(shape) * self.dtype.itemsize)
        at = self._offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._require_same_file(fd)
                read = 0
                while read < len(buffer) and (count := os.preadv(fd, [memoryview(buffer)[read:]], at + read)):
                    read += count
            finally:
                os.close(fd)
        except OSError as exc:
            raise MediaError(f"{self.path} cannot be read: {exc}") from exc
        if read < len(buffer):
            raise MediaError(f"{self.path} ends within {self.name!r}; it was cut off or replaced")
        return np.frombuffer(buffer, self.dtype).reshape(shape)

    def _require_same_file(self, fd: int) -> None:
        # The offset would mean other numbers in another file.
        if _version(fd) != self._version:
            raise MediaError(f"{self.path} was replaced or written to since it was opened; open the episode again")

    def _loaded(self) -> np.ndarray:
        try:
            with self.path.open("rb") as file:
                self._require_same_file(file.fileno())
                loaded = np.load(file, allow_pickle=False)
                array: np.ndarray = loaded if isinstance(loaded, np.ndarray) else loaded[self.name]
                return array
        except MediaError:
            raise
        except Exception as exc:
            raise MediaError(f"{self.path} cannot be read: {type(exc).__name__}: {exc}") from exc


def array_in(path: Path, name: str) -> StoredArray | None:
    """Return the array `name` of an `.npz` archive, or None if the archive has none of this name.

    Raises:
        MediaError: the file is no readable archive, or the array holds something else than real numbers (objects are
                pickles, which run code).
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            version = _version(file.fileno())
            if f"{name}.npy" not in archive.NameToInfo:
                return None
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as stream:
                shape, is_fortran, dtype = _header(stream)
                header_bytes = stream.tell()
            offset = None
            if member.compress_type == zipfile.ZIP_STORED and not is_fortran:
                file.seek(member.header_offset)
                offset = member.header_offset + 30 + sum(_LOCAL_HEADER.unpack(file.read(30))) + header_bytes
    # zipfile and numpy raise whatever a damaged header leads them to.
    except Exception as exc:
        raise MediaError(f"{path.name} cannot be read: {type(exc).__name__}: {exc}") from exc
    return StoredArray(path, name, _plain(path, shape, dtype), dtype, offset, version)


def array_file(path: Path) -> StoredArray:
    """Return the array of an `.npy` file.

    Raises:
        MediaError: as `array_in`.
    """
    try:
        with path.open("rb") as stream:
            version = _version(stream.fileno())
            shape, is_fortran, dtype = _header(stream)
            offset = None if is_fortran else stream.tell()
    except Exception as exc:
        raise MediaError(f"{path.name} cannot be read: {type(exc).__name__}: {exc}") from exc
    return StoredArray(path, path.stem, _plain(path, shape, dtype), dtype, offset, version)


def _version(fd: int) -> tuple[int, int]:
    """What tells a file from a later one of its name; not the inode, which some network file systems make up."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    return shape, is_fortran and len(shape) > 1, dtype


def _plain(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    if dtype.hasobject:
        raise MediaError(f"{path.name} holds objects, which are pickles; arrays of numbers are admitted")
    if dtype.kind not in "biuf":
        raise MediaError(f"{path.name} holds {dtype}; arrays of real numbers are admitted")
    if not shape:
        raise MediaError(f"{path.name} holds a single number where rows are expected")
    return shape
