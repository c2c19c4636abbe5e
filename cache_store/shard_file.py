"""One shard: many feature files as they are in one Arrow IPC file, and the byte for each that says whether it counts.

A row's content is the feature's whole `.pt` file, padded to a multiple of 64 bytes so that tensors stay aligned. All
columns but two never change. `live` and `dead` hold one byte for each row, which is set once, in place, and never
cleared: a row counts when it is live and not dead. The footer's metadata says where each column lies, so that readers
need no Arrow, which can read the file all the same.
"""

from __future__ import annotations

import functools
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache_store.atomic import Bytes
from cache_store.checksum import crc32
from cache_store.errors import DamagedFeature, StoreReadError, StoreWriteError
from cache_store.file_systems import is_on_local_disk

_KEY = "vlm_cache_shard"
_FORMAT = 1
_ALIGNMENT = 64
_PLACES_BYTES = 1024
_MARKER = b"ARROW1"
_NUMBERS = {"bytes": "<i8", "crc32": "<u4", "written_ns": "<i8", "changed_ns": "<i8"}


class Row(NamedTuple):
    """One feature file to be packed."""

    name: str  # its relative path
    content: bytes
    written_ns: int  # st_mtime_ns
    changed_ns: int  # st_ctime_ns: of two rows with one name the later one is the newer version
    fingerprint8: str  # "" for none


def encoded(rows: Sequence[Row]) -> list[Bytes]:
    """The shard's bytes, all rows neither live nor dead, made in little more memory than they take."""

    def fill(contents: memoryview, starts: Sequence[int]) -> None:
        for row, start in zip(rows, starts, strict=True):
            contents[start : start + len(row.content)] = row.content

    return [encoded_by(fill, [Head(row.name, len(row.content), *row[2:], False) for row in rows])]


class Head(NamedTuple):
    """One feature file to be packed, without its content."""

    name: str
    bytes: int
    written_ns: int
    changed_ns: int
    fingerprint8: str
    live: bool


def encoded_by(fill: Callable[[memoryview, Sequence[int]], None], rows: Sequence[Head]) -> memoryview:
    """The shard's bytes, no row dead. `fill` writes the files into the memory that it gets, each from its start on."""
    import pyarrow as pa

    columns = _columns(pa, rows)
    # Of one byte each first, to see where the contents begin.
    short = _strings(pa, pa.large_binary(), [1] * len(rows), bytes(len(rows)))
    rest = -_places(_written(pa, {"content": short, **columns}, b" " * _PLACES_BYTES))["content"][0] % _ALIGNMENT
    blank = b" " * (_PLACES_BYTES + rest)
    sizes = [row.bytes + -row.bytes % _ALIGNMENT for row in rows]
    # Zeros that nobody wrote take no memory: the contents are written once, to where they belong.
    zeros = _strings(pa, pa.large_binary(), sizes, np.zeros(sum(sizes), np.uint8))
    whole = _written(pa, {"content": zeros, **columns}, blank)
    places = _places(whole)
    at, content_bytes = places["content"]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    contents = whole[at : at + content_bytes]
    fill(contents, starts)
    crcs = (crc32(contents[start : start + row.bytes]) for row, start in zip(rows, starts, strict=True))
    crcs_at = places["crc32"][0]
    whole[crcs_at : crcs_at + 4 * len(rows)] = np.fromiter(crcs, _NUMBERS["crc32"], len(rows)).data.cast("B")
    told = {_KEY: _FORMAT, "rows": len(rows), "places": places, "crc32": _crc_of_columns(whole, places)}
    text = json.dumps(told, separators=(",", ":")).encode().ljust(len(blank))
    if len(text) != len(blank) or at % _ALIGNMENT:
        raise RuntimeError("the shard's layout does not hold its description")
    head, tail = bytes(whole[:at]), bytes(whole[at + content_bytes :])
    first, last = head.find(blank), at + content_bytes + tail.rfind(blank)
    whole[first : first + len(blank)] = whole[last : last + len(blank)] = text
    return whole


def _columns(pa: Any, rows: Sequence[Head]) -> dict[str, Any]:
    names = [row.name.encode() for row in rows]
    numbers = {
        "bytes": [row.bytes for row in rows],
        "crc32": [0] * len(rows),  # filled in when the contents are there
        "written_ns": [row.written_ns for row in rows],
        "changed_ns": [row.changed_ns for row in rows],
        "live": [row.live for row in rows],
        "dead": [0] * len(rows),
    }
    fingerprints = b"".join(row.fingerprint8.encode().ljust(8, b"\0") for row in rows)
    return {
        "name": _strings(pa, pa.large_string(), list(map(len, names)), b"".join(names)),
        "fingerprint8": _array(pa, pa.binary(8), len(rows), fingerprints),
        **{name: _numbers(pa, np.array(values, _NUMBERS.get(name, "u1"))) for name, values in numbers.items()},
    }


def _strings(pa: Any, kind: Any, sizes: Sequence[int], joined: bytes | np.ndarray[Any, Any]) -> Any:
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    return _array(pa, kind, len(sizes), offsets, joined)


def _numbers(pa: Any, values: np.ndarray[Any, Any]) -> Any:
    return _array(pa, pa.from_numpy_dtype(values.dtype), len(values), values)


def _array(pa: Any, kind: Any, count: int, *buffers: Any) -> Any:
    # Not by `pa.array`, which would copy the contents.
    return pa.Array.from_buffers(kind, count, [None, *map(pa.py_buffer, buffers)])


def _written(pa: Any, columns: dict[str, Any], description: bytes) -> memoryview:
    schema = pa.schema([(name, column.type) for name, column in columns.items()], {_KEY: description})
    batch = pa.record_batch(list(columns.values()), schema=schema)
    counted = pa.MockOutputStream()
    with pa.ipc.new_file(counted, schema) as writer:
        writer.write_batch(batch)
    whole = np.empty(counted.size(), np.uint8)  # numpy asks for huge pages
    with pa.ipc.new_file(pa.FixedSizeBufferWriter(pa.py_buffer(whole)), schema) as writer:
        writer.write_batch(batch)
    return whole.data


def _places(whole: memoryview) -> dict[str, list[int]]:
    """Where each column's values lie, and how long they are, by what Arrow itself reads."""
    import pyarrow as pa

    content = pa.py_buffer(whole)
    batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
    places = {}
    for name in batch.schema.names:
        buffers = batch.column(name).buffers()
        if len(buffers) == 3:
            places[f"{name}_offsets"] = [buffers[1].address - content.address, buffers[1].size]
        places[name] = [buffers[-1].address - content.address, buffers[-1].size]
    return places


def _crc_of_columns(content: memoryview, places: dict[str, list[int]]) -> int:
    crc = 0
    for name, (start, size) in sorted(places.items()):
        if name not in ("content", "live", "dead"):
            crc = crc32(content[start : start + size], crc)
    return crc


class Shard:
    """An open shard, mapped where the file system is this machine's own. Safe for threads and forks.

    Raises:
        FileNotFoundError: it was removed.
        DamagedFeature: not a whole shard.
        StoreReadError: the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the shard
            self._status = os.fstat(self._file.fileno())
            self.file_bytes = self._status.st_size
            self._map = self._mapped()
            # The whole file where it is mapped.
            self.memory = None if self._map is None else memoryview(self._map)
            if self._map is not None:
                self._file.close()  # the map holds it open
            told = self._description()
            self.rows: int = told["rows"]
            self._places: dict[str, list[int]] = told["places"]
            parts = {name: self._part(*place) for name, place in self._places.items() if name != "content"}
        except (ValueError, KeyError, TypeError) as exc:
            raise DamagedFeature(str(path), f"not a whole shard ({exc})") from exc
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise StoreReadError(str(path), exc) from exc
        self._read_columns(parts, told["crc32"])
        self.forget_pages()

    def _mapped(self) -> mmap.mmap | None:
        if not self.file_bytes or not is_on_local_disk(self._file.fileno()):
            return None
        return mmap.mmap(self._file.fileno(), self.file_bytes, access=mmap.ACCESS_READ)

    def _description(self) -> dict[str, Any]:
        """The footer's metadata.

        Raises:
            ValueError, KeyError: there is none.
        """
        end = self._part(self.file_bytes - 10, 10)
        if bytes(end[4:]) != _MARKER:
            raise ValueError("no footer at its end")
        size = int.from_bytes(end[:4], "little")
        footer = bytes(self._part(self.file_bytes - 10 - size, size))
        start = footer.index(b'{"' + _KEY.encode())
        told: dict[str, Any] = json.JSONDecoder().raw_decode(footer[start:].decode("latin-1"))[0]
        if told[_KEY] != _FORMAT:
            raise ValueError(f"its format is {told[_KEY]}, not {_FORMAT}")
        return told

    def _part(self, start: int, size: int) -> memoryview:
        if start < 0 or size < 0 or start + size > self.file_bytes:
            raise ValueError(f"{size} bytes at {start} of {self.file_bytes}")
        if self.memory is not None:
            return self.memory[start : start + size]
        parts = bytearray()
        while len(parts) < size:
            part = os.pread(self._file.fileno(), size - len(parts), start + len(parts))
            if not part:
                raise ValueError(f"ends {size - len(parts)} bytes early")
            parts += part
        return memoryview(parts)

    def _read_columns(self, parts: dict[str, memoryview], wanted_crc: int) -> None:
        crc = 0
        for name in sorted(parts):
            if name not in ("live", "dead"):
                crc = crc32(parts[name], crc)
        if crc != wanted_crc:
            raise DamagedFeature(str(self.path), "the shard's columns fail their checksum")
        numbers = {name: np.frombuffer(parts[name], kind, self.rows) for name, kind in _NUMBERS.items()}
        self.bytes, self.crc32 = numbers["bytes"], numbers["crc32"]
        self.written_ns, self.changed_ns = numbers["written_ns"], numbers["changed_ns"]
        self._starts = np.frombuffer(parts["content_offsets"], "<i8", self.rows)
        self._name_offsets = np.frombuffer(parts["name_offsets"], "<i8", self.rows + 1)
        self._name_bytes = parts["name"]
        self._fingerprints = parts["fingerprint8"]
        self._content_at, self._live_at, self._dead_at = (self._places[name][0] for name in ("content", "live", "dead"))
        self.content_starts = self._starts + self._content_at  # in the file

    def names(self) -> list[str]:
        """All names, of dead rows too."""
        text, offsets = self._decoded()
        return [text[start:end] for start, end in itertools.pairwise(offsets.tolist())]

    def arrow_names(self) -> Any:
        """All names as an Arrow array of `large_string`, not copied."""
        import pyarrow as pa

        buffers = [pa.py_buffer(part) for part in (self._name_offsets, self._name_bytes)]
        return pa.Array.from_buffers(pa.large_string(), self.rows, [None, *buffers])

    def names_of(self, rows: np.ndarray[Any, Any]) -> list[str]:
        """The names of these rows, at a fraction of `name`'s cost."""
        text, offsets = self.text
        return [text[start:end] for start, end in zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)]

    @functools.cached_property
    def text(self) -> tuple[str, np.ndarray[Any, Any]]:
        """All names in one, and where each begins and the last one ends."""
        return self._decoded()

    def _decoded(self) -> tuple[str, np.ndarray[Any, Any]]:
        text = str(self._name_bytes, "utf-8")
        if len(text) == len(self._name_bytes):
            return text, self._name_offsets
        begins = (np.frombuffer(self._name_bytes, np.uint8) & 0xC0) != 0x80  # in UTF-8 every other byte goes on
        return text, np.concatenate([[0], np.cumsum(begins)])[self._name_offsets]

    def name(self, row: int) -> str:
        return str(self._name_bytes[self._name_offsets[row] : self._name_offsets[row + 1]], "utf-8")

    def fingerprint8(self, row: int) -> str:
        return bytes(self._fingerprints[8 * row : 8 * row + 8]).rstrip(b"\0").decode("ascii")

    def fingerprints(self) -> np.ndarray[Any, Any]:
        """As `fingerprint8`, of all rows, as bytes."""
        return np.frombuffer(self._fingerprints, "S8", self.rows)

    def content(self, row: int) -> memoryview:
        """The feature file's bytes, not verified; of a mapped shard they are the map's own.

        Raises:
            DamagedFeature, StoreReadError: they cannot be read.
        """
        try:
            return self._part(int(self.content_starts[row]), int(self.bytes[row]))
        except ValueError as exc:
            raise DamagedFeature(str(self.path), str(exc)) from exc
        except OSError as exc:
            raise StoreReadError(str(self.path), exc) from exc

    def problem(self, row: int) -> str | None:
        """What is wrong with a row's content; None when its checksum is right."""
        return None if crc32(self.content(row)) == self.crc32[row] else "the packed file fails its checksum"

    def forget_pages(self) -> None:
        """Give the memory back that holds what was read of a mapped shard; the next reader finds it as before."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def states(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Copies of the bytes `live` and `dead` as they are now.

        Raises:
            StoreReadError: the disk.
        """
        return self._flags("live"), self._flags("dead")

    def _flags(self, column: str) -> np.ndarray[Any, Any]:
        place = self._places[column]
        flags: np.ndarray[Any, Any] = np.frombuffer(bytes(self._state(place[0], self.rows)), np.uint8) != 0
        return flags

    def _state(self, start: int, size: int) -> memoryview:
        try:
            return self._part(start, size)
        except (OSError, ValueError) as exc:
            raise StoreReadError(str(self.path), exc if isinstance(exc, OSError) else OSError(str(exc))) from exc

    def counting(self) -> np.ndarray[Any, Any]:
        """For each row whether it counts now."""
        live, dead = self.states()
        counting: np.ndarray[Any, Any] = live & ~dead
        return counting

    @property
    def flags_at(self) -> tuple[int, int]:
        """Where the bytes `live` and `dead` of the first row are in the file."""
        return self._live_at, self._dead_at

    def counts(self, row: int) -> bool:
        """Whether a row counts now."""
        if self._map is not None:
            return self._map[self._live_at + row] != 0 and self._map[self._dead_at + row] == 0
        return self._byte("live", row) and not self._byte("dead", row)

    def is_dead(self, row: int) -> bool:
        return self._byte("dead", row)

    def _byte(self, column: str, row: int) -> bool:
        return self._state(self._places[column][0] + row, 1)[0] != 0

    def mark(self, column: str, rows: Iterable[int], *, flush: bool = False) -> None:
        """Set the bytes of `live` or `dead` for these rows; room for them was taken when the shard was written.

        Raises:
            StoreWriteError: the operating system refused.
        """
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                if not os.path.samestat(os.fstat(fd), self._status):
                    return  # another file by now
                for first, count in _runs(rows):
                    written = 0
                    while written < count:
                        written += os.pwrite(fd, b"\1" * (count - written), self._places[column][0] + first + written)
                if flush:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return  # with the shard its rows are gone
        except OSError as exc:
            raise StoreWriteError(str(self.path), exc) from exc

    def has_its_name(self) -> bool:
        """Whether the shard is still one of the store's: else marks are set in vain."""
        try:
            return os.path.samestat(os.stat(self.path), self._status)
        except OSError:
            return False


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first of each run of successive numbers, and how many it has."""
    first = count = 0
    for row in rows:
        if count and row == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = row, 1
    if count:
        yield first, count
