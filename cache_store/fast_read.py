"""Reads a small feature in three system calls when a file with an equal head was verified in full before.

The head, everything in front of the tensor's bytes, decides the structure, dtype and shape: it is compared byte by
byte. The tensor's bytes are checked by their CRC-32, and the end of the file by its directory's place and size. What
lies in between (the records that torch adds and the store's own) does not change the value.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_store import pickle_layout
from cache_store.archive import RECORD_END, RECORD_END_BYTES, Archive
from cache_store.checksum import crc32
from cache_store.file_systems import READ_FLAGS
from cache_store.pickle_layout import MAIN_FIELD, TensorPlace

if TYPE_CHECKING:
    import torch

LARGEST_BYTES = 1 << 16
_FIRST_BUFFER_BYTES = 1 << 10  # the first file of a kind is read with care, and tells how long its like are
_SLACK_BYTES = 256  # records of neighbouring files differ by a few digits
_MAX_HEADS = 1024
_DESCRIPTOR_BYTES = 16
_DESCRIPTOR = struct.Struct("<II").unpack_from  # behind the tensor: a marker and its CRC-32
_DESCRIPTOR_MARKER = 0x08074B50
_END_BYTES = 22
_END = struct.Struct("<I8xIIH").unpack_from  # a marker, the directory's size and place, the length of a comment
_END_MARKER = 0x06054B50


class Head(NamedTuple):
    """What all files of one model and shape begin with."""

    content: bytes
    payload_end: int
    file_bytes: int  # of the file that was verified; most of its like are as long and end alike
    end: bytes
    directory_at: int
    shape: tuple[int, ...]  # of the tensor as numpy has it
    dtype: np.dtype[Any]
    finish: Callable[[np.ndarray[Any, Any]], object]  # makes the feature of the array that shares a file's content
    place: TensorPlace
    is_main: bool  # the tensor is the feature itself, or its main field


class FastReader:
    """Remembers the heads of verified files. Safe for threads: a lost race costs one slow read."""

    def __init__(self) -> None:
        self._latest: Head | None = None
        self._heads: dict[bytes, Head] = {}
        self._lengths: tuple[int, ...] = ()
        self._buffer_bytes = _FIRST_BUFFER_BYTES

    def read(self, path: str, fingerprint: str | None) -> object | None:
        """The feature, or None when the file has to be read with care: unknown, large, damaged or of another recipe.

        Raises:
            OSError: as `open` and `read`.
        """
        buffer = bytearray(self._buffer_bytes)
        fd = os.open(path, READ_FLAGS)
        try:
            length = os.readv(fd, (buffer,))
        finally:
            os.close(fd)
        if length == len(buffer):
            self._buffer_bytes = min(2 * length, LARGEST_BYTES)
            return None
        return self.value_in(buffer, length, fingerprint)

    def value_in(self, buffer: bytearray, length: int, fingerprint: str | None) -> object | None:
        """The feature whose file is the first `length` bytes of `buffer`, which it keeps; None as in `read`."""
        head = self._latest
        if head is None or not buffer.startswith(head.content):
            head = self._head_of(buffer)
            if head is None:
                return None
        content, end, file_bytes, end_record, directory_at, shape, dtype, finish, _, _ = head
        if length != file_bytes or not buffer.endswith(end_record, 0, length):
            directory_at = _directory_at(buffer, length)
            if directory_at < end + _DESCRIPTOR_BYTES:
                return None
        marker, crc = _DESCRIPTOR(buffer, end)
        array = np.ndarray(shape, dtype, buffer, len(content))
        if marker != _DESCRIPTOR_MARKER or crc32(array) != crc:
            return None
        if fingerprint is not None:
            expected = b'"recipe_fingerprint":"%b"}' % fingerprint.encode()
            if buffer[directory_at - len(expected) : directory_at] != expected:
                return None
        return finish(array)

    def learn(self, archive: Archive) -> None:
        """Remember the head of a file that was just read and verified in full, if its like can be read fast."""
        tree = archive.tree()
        size = os.fstat(archive.file.fileno()).st_size
        places = pickle_layout.places(tree) if tree is not None else []
        if len(places) != 1 or places[0].nbytes == 0 or size >= LARGEST_BYTES:
            return
        place = places[0]
        start, nbytes, _ = archive.storage(place.storage)
        whole = os.pread(archive.file.fileno(), size, 0)
        content, end = whole[:start], whole[-_END_BYTES:]
        is_main = tree is place or (isinstance(tree, dict) and tree.get(MAIN_FIELD) is place)
        directory_at = _directory_at(whole, size)
        finish = _finish(tree, place)
        head = Head(
            content, start + nbytes, size, end, directory_at, place.shape, _numpy_dtype(place), finish, place, is_main
        )
        if len(self._heads) >= _MAX_HEADS:
            self._heads = {}
        self._heads = {**self._heads, content: head}
        self._lengths = tuple({len(known) for known in self._heads})
        self._latest = head
        self._buffer_bytes = max(self._buffer_bytes, size + _SLACK_BYTES)

    def head_of(self, content: memoryview) -> Head | None:
        """What is known of files that begin as this one does; nothing of it is verified."""
        head = self._latest
        if head is not None and content[: len(head.content)] == head.content:
            return head
        return self._head_of(content)

    @staticmethod
    def fingerprint_in(content: memoryview) -> str | None:
        """The fingerprint of the recipe in a file of ours; None where it tells none."""
        directory_at = _directory_at(content, len(content))
        found = RECORD_END.fullmatch(content[max(0, directory_at - RECORD_END_BYTES) : directory_at])
        return found[1].decode("ascii") if found else None

    def _head_of(self, buffer: bytearray | memoryview) -> Head | None:
        for length in self._lengths:
            head = self._heads.get(bytes(buffer[:length]))
            if head is not None:
                self._latest = head
                return head
        return None


def _directory_at(content: bytes | bytearray | memoryview, length: int) -> int:
    """Where the directory of a file of this length begins; 0 if its end is not that of a whole file."""
    marker, directory_bytes, directory_at, comment_bytes = _END(content, length - _END_BYTES)
    if marker != _END_MARKER or comment_bytes or directory_at + directory_bytes + _END_BYTES != length:
        return 0
    return int(directory_at)


def _numpy_dtype(place: TensorPlace) -> np.dtype[Any]:
    try:
        return np.dtype(place.dtype)
    except TypeError:  # bfloat16
        return np.dtype(f"i{pickle_layout.ITEM_BYTES[place.dtype]}")


def _finish(tree: object, place: TensorPlace) -> Callable[[np.ndarray[Any, Any]], object]:
    import torch

    dtype = getattr(torch, place.dtype)

    def tensor_of(array: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if tensor.dtype == dtype else tensor.view(dtype)

    if tree is not place:
        return lambda array: pickle_layout.filled(tree, lambda _: tensor_of(array))
    # By the shortest way: a third faster than torch.frombuffer and view.
    return torch.from_numpy if _numpy_dtype(place).name == place.dtype else tensor_of
