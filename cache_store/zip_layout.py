"""Writes the zip around a feature's records as `torch.save` does: stored plainly, data aligned to 64 bytes.

Everything but checksums and the store's own record depends on the records' names and sizes only, and is kept.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cache_store.checksum import crc32

ROOT = "archive"
LARGEST_BYTES = (1 << 32) - (1 << 20)  # a larger file needs zip64 records
_ALIGNMENT = 64
_FLAGS = 0x0808  # sizes and checksum follow the data; names are UTF-8
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_DESCRIPTOR = struct.Struct("<4sIII")
_END = struct.Struct("<4sHHHHIIH")
_CRC_IN_LOCAL = 14
_CRC_IN_CENTRAL = 16
_CRC_IN_DESCRIPTOR = 4
_FIXED = {".format_version": b"1", ".storage_alignment": str(_ALIGNMENT).encode(), "byteorder": b"little"}
_VERSION = b"3\n"


class _Frame(NamedTuple):
    """What lies around the tensors' bytes."""

    heads: tuple[bytes, ...]  # before each tensor; the last one comes after all tensors
    sizes: tuple[int, ...]
    directory: bytes
    crc_offsets: tuple[int, ...]  # of the tensors, in the directory
    directory_offset: int
    records: int


def assemble(
    data_pkl: bytes, payloads: Sequence[memoryview], record_name: str, record: bytes
) -> list[bytes | memoryview]:
    """A whole file as buffers to write one after another; the payloads are not copied.

    `payloads[i]` (one-dimensional, of bytes) becomes the record `data/<i>`; `record` goes last, without alignment.
    """
    frame = _frame(data_pkl, tuple(payload.nbytes for payload in payloads))
    directory = bytearray(frame.directory)
    buffers: list[bytes | memoryview] = []
    for head, size, payload, crc_offset in zip(frame.heads, frame.sizes, payloads, frame.crc_offsets, strict=False):
        crc = crc32(payload)
        struct.pack_into("<I", directory, crc_offset, crc)
        buffers += [head, payload, _DESCRIPTOR.pack(b"PK\x07\x08", crc, size, size)]
    name = f"{ROOT}/{record_name}".encode()
    crc, size, offset = crc32(record), len(record), frame.directory_offset
    tail = b"".join(
        (
            frame.heads[-1],
            _LOCAL.pack(b"PK\x03\x04", 20, 0x0800, 0, 0, 0x21, crc, size, size, len(name), 0),
            name,
            record,
            directory,
            _CENTRAL.pack(b"PK\x01\x02", 20, 20, 0x0800, 0, 0, 0x21, crc, size, size, len(name), 0, 0, 0, 0, 0, offset),
            name,
            _END.pack(
                b"PK\x05\x06",
                0,
                0,
                frame.records + 1,
                frame.records + 1,
                len(directory) + _CENTRAL.size + len(name),
                offset + _LOCAL.size + len(name) + size,
                0,
            ),
        )
    )
    buffers.append(tail)
    return buffers


class Template(NamedTuple):
    """A whole file of one tensor, and where in it lies what differs from file to file."""

    content: bytes
    payload_at: int
    payload_end: int
    payload_crcs_at: tuple[int, int]
    record_at: int
    record_end: int
    record_crcs_at: tuple[int, int]

    def fill(self, files: np.ndarray[Any, Any], payloads: np.ndarray[Any, Any], records: Sequence[bytes]) -> None:
        """Make each row of `files` (uint8) the whole file of the row of `payloads` (uint8) and the record there."""
        content, count = np.frombuffer(self.content, np.uint8), len(files)
        files[:, : self.payload_at] = content[: self.payload_at]
        files[:, self.payload_at : self.payload_end] = payloads
        files[:, self.payload_end :] = content[self.payload_end :]
        files[:, self.record_at : self.record_end] = np.frombuffer(b"".join(records), np.uint8).reshape(count, -1)
        for parts, places in ((payloads, self.payload_crcs_at), (records, self.record_crcs_at)):
            crcs = np.fromiter(map(crc32, parts), "<u4", count).view(np.uint8).reshape(count, 4)
            for place in places:
                files[:, place : place + 4] = crcs


@functools.lru_cache(maxsize=256)
def template(data_pkl: bytes, payload_bytes: int, record_name: str, record_bytes: int) -> Template:
    """What `assemble` makes of a tensor of so many bytes and a record of so many."""
    frame = _frame(data_pkl, (payload_bytes,))
    buffers = assemble(data_pkl, [memoryview(bytes(payload_bytes))], record_name, bytes(record_bytes))
    payload_at = len(frame.heads[0])
    payload_end = payload_at + payload_bytes
    record_at = frame.directory_offset + _LOCAL.size + len(f"{ROOT}/{record_name}".encode())
    record_end = record_at + record_bytes
    return Template(
        b"".join(buffers),
        payload_at,
        payload_end,
        (payload_end + _CRC_IN_DESCRIPTOR, record_end + frame.crc_offsets[0]),
        record_at,
        record_end,
        (frame.directory_offset + _CRC_IN_LOCAL, record_end + len(frame.directory) + _CRC_IN_CENTRAL),
    )


@functools.lru_cache(maxsize=256)
def _frame(data_pkl: bytes, sizes: tuple[int, ...]) -> _Frame:
    heads: list[bytes] = []
    crc_offsets: list[int] = []
    directory = bytearray()
    head = bytearray()
    offset = records = 0
    contents: list[tuple[str, bytes | int]] = [("data.pkl", data_pkl), *_FIXED.items()]
    contents += [(f"data/{position}", size) for position, size in enumerate(sizes)]
    contents.append(("version", _VERSION))
    for name, content in contents:
        is_tensor = isinstance(content, int)
        size = content if isinstance(content, int) else len(content)
        crc = 0 if isinstance(content, int) else crc32(content)
        full_name = f"{ROOT}/{name}".encode()
        local = _local_header(full_name, offset)
        head += local
        if is_tensor:
            crc_offsets.append(len(directory) + _CRC_IN_CENTRAL)
            heads.append(bytes(head))
            head.clear()
        elif isinstance(content, bytes):
            head += content + _DESCRIPTOR.pack(b"PK\x07\x08", crc, size, size)
        directory += _CENTRAL.pack(
            b"PK\x01\x02", 0, 0, _FLAGS, 0, 0, 0, crc, size, size, len(full_name), 0, 0, 0, 0, 0, offset
        )
        directory += full_name
        offset += len(local) + size + _DESCRIPTOR.size
        records += 1
    heads.append(bytes(head))
    return _Frame(tuple(heads), sizes, bytes(directory), tuple(crc_offsets), offset, records)


def _local_header(name: bytes, offset: int) -> bytes:
    """A local header with an extra field that pads so that the data begins at a multiple of 64."""
    unpadded = offset + _LOCAL.size + len(name) + 4
    padding = -unpadded % _ALIGNMENT
    extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return _LOCAL.pack(b"PK\x03\x04", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra
