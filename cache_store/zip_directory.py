"""The directory at the end of a zip archive: a plain one is read at once from the end, any other by zipfile."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import BinaryIO, NamedTuple

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_TAIL_BYTES = 4096  # end of the file that holds most directories of ours
_LARGE = 0xFFFFFFFF  # the true figure stands elsewhere
_UNUSUAL_FLAGS = 0x1 | 0x20 | 0x40  # encrypted or patched content
_NEWEST_VERSION = 63  # of the format, that zipfile reads


class Entry(NamedTuple):
    """One record of an archive, as its directory describes it."""

    name: str
    header_at: int
    bytes: int
    stored_bytes: int
    method: int
    crc: int


class Directory(NamedTuple):
    """The records in their order, and where the directory begins in the file."""

    entries: list[Entry]
    begins_at: int


def read_directory(file: BinaryIO) -> Directory:
    """Read the directory of an open archive.

    Raises:
        OSError: as reading.
        zipfile.BadZipFile and the other errors of zipfile: no sound directory.
    """
    directory = _plain(file.fileno())
    if directory is not None:
        return directory
    archive = zipfile.ZipFile(file)
    entries = [
        Entry(one.filename, one.header_offset, one.file_size, one.compress_size, one.compress_type, one.CRC)
        for one in archive.infolist()
    ]
    return Directory(entries, archive.start_dir)


def _plain(fd: int) -> Directory | None:
    """A directory that lies right before the end record of the file, without anything unusual; else None."""
    length = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL_BYTES, max(0, length - _TAIL_BYTES))
    end_at = len(tail) - _END.size
    if end_at < 0:
        return None
    signature, disk, first_disk, count, total, size, begins_at, comment = _END.unpack_from(tail, end_at)
    if signature != b"PK\x05\x06" or disk or first_disk or comment or count != total:
        return None
    if begins_at + size != length - _END.size:
        return None
    listed = tail[end_at - size : end_at] if size <= end_at else os.pread(fd, size, begins_at)
    entries = _entries(listed, count)
    return None if entries is None else Directory(entries, begins_at)


def _entries(listed: bytes, count: int) -> list[Entry] | None:
    entries: list[Entry] = []
    place = 0
    for _ in range(count):
        if place + _ENTRY.size > len(listed):
            return None
        fields = _ENTRY.unpack_from(listed, place)
        signature, _, _, version, _, flags, method, _, _, crc, stored, size, name, extra, comment = fields[:15]
        header_at = fields[-1]
        if signature != b"PK\x01\x02" or flags & _UNUSUAL_FLAGS or version > _NEWEST_VERSION:
            return None
        if _LARGE in (stored, size, header_at):
            return None
        words = listed[place + _ENTRY.size : place + _ENTRY.size + name]
        if not words.isascii() or b"\0" in words or extra:
            return None
        entries.append(Entry(words.decode("ascii"), header_at, size, stored, method, crc))
        place += _ENTRY.size + name + extra + comment
    return entries if place == len(listed) else None
