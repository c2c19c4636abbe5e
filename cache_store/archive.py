"""The zip around a `.pt` file, without torch: checksums, and the store's own record inside it."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cache_store import pickle_layout
from cache_store.checksum import crc32
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.file_systems import READ_FLAGS, NoRegularFile, open_regular
from cache_store.pickle_layout import UnknownLayout
from cache_store.recipes import canonical_json
from cache_store.zip_directory import Entry, read_directory

RECORD_NAME = "vlm_cache.json"
RECORD_FORMAT = 1
_CHUNK_BYTES = 1 << 20
_SMALL_RECORD_BYTES = 1 << 20
_LOCAL_BYTES = 30
_END_BYTES = 22
_encoded = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
RECORD_END = re.compile(rb'"recipe_fingerprint":"([0-9a-f]{64})"}')
RECORD_END_BYTES = len('"recipe_fingerprint":""}') + 64
# What zipfile raises on bytes that are no sound archive; it has no common class for them.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Record:
    """What the store writes beside the tensors: which feature this is and how it was made.

    `recipe_fingerprint` is 64 hex digits, or None when the writer gave no recipe; `recipe` and `provenance`
    are JSON objects.
    """

    key: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    recipe_fingerprint: str | None = None
    provenance: Mapping[str, Any] | None = None
    name: str | None = None  # the feature's relative path, where it was looked up by its key; not written

    def to_json(self) -> bytes:
        """Canonical: equal records give equal bytes."""
        key = _encoded(self.key)  # another one each time: not worth keeping
        provenance = "null" if self.provenance is None else canonical_json(self.provenance)
        recipe = "null" if self.recipe is None else canonical_json(self.recipe)
        fingerprint = "null" if self.recipe_fingerprint is None else f'"{self.recipe_fingerprint}"'
        # The fingerprint comes last: a fast reader finds it in front of the directory.
        text = (
            f'{{"format":{RECORD_FORMAT},"key":{key},"provenance":{provenance},"recipe":{recipe},'
            f'"recipe_fingerprint":{fingerprint}}}'
        )
        return text.encode("ascii")


class Archive:
    """One open feature file. Methods raise `DamagedFeature` for content, `StoreReadError` for the disk."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self._whole: bytes | None = None
        try:
            self._entries, self._directory_at = read_directory(file)
        except (*_ZIP_ERRORS, OSError) as exc:
            raise _translated(path, exc, "not a complete zip archive") from exc
        self._by_name = {entry.name: entry for entry in self._entries}

    def record(self) -> Record | None:
        """The store's record, read without touching the tensors; None for files that others wrote."""
        found = next((entry for entry in self._entries if entry.name.rpartition("/")[2] == RECORD_NAME), None)
        if found is None:
            return None
        content = self._content(found)
        try:
            fields = json.loads(content)
            return Record(fields["key"], fields["recipe"], fields["recipe_fingerprint"], fields["provenance"])
        except (ValueError, KeyError, TypeError) as exc:
            raise DamagedFeature(self.path, f"record {RECORD_NAME} cannot be read ({exc})") from exc

    def whole(self) -> bytes:
        """All bytes of the file; whatever is asked of it from now on is asked of these."""
        if self._whole is None:
            try:
                self.file.seek(0)
                self._whole = self.file.read()
            except OSError as exc:
                raise StoreReadError(self.path, exc) from exc
        return self._whole

    def verify(self, *, skip_tensors: bool = False) -> None:
        """Check every record's CRC-32, which `torch.load` never does, and that this is a torch archive.

        With `skip_tensors` the tensors' records are left to whoever reads them.
        """
        if len(self._by_name) != len(self._entries):
            raise DamagedFeature(self.path, "two records share one name")
        self._root()
        for entry in self._entries:
            if not (skip_tensors and "/data/" in entry.name):
                self._verify_one(entry)

    def tree(self) -> object | None:
        """The value with `TensorPlace`s for its tensors; None for a layout that only torch understands."""
        root = self._root()
        try:
            if self._small_record(f"{root}/byteorder", default=b"little") != b"little":
                return None
            return _parsed(self._small_record(f"{root}/data.pkl"))
        except UnknownLayout:
            return None

    def storage(self, key: str) -> tuple[int, int, int]:
        """Where the bytes of a storage begin in the file, how many there are, and their CRC-32."""
        name = f"{self._root()}/data/{key}"
        entry = self._by_name.get(name)
        if entry is None:
            raise DamagedFeature(self.path, f"record {name} is missing")
        return self._place(entry)

    def _place(self, entry: Entry) -> tuple[int, int, int]:
        name = entry.name
        # torch reads STORED records only, and trusts both sizes to agree.
        if entry.method != zipfile.ZIP_STORED or entry.stored_bytes != entry.bytes:
            raise DamagedFeature(self.path, f"record {name} is not stored plainly")
        # The name and the padding before the data may be longer here than in the directory.
        encoded = name.encode()
        header = self._read_at(entry.header_at, _LOCAL_BYTES + len(encoded))
        if len(header) < _LOCAL_BYTES or header[:4] != b"PK\x03\x04":
            raise DamagedFeature(self.path, f"record {name} has no header")
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, _LOCAL_BYTES - 4)
        offset = entry.header_at + _LOCAL_BYTES + name_bytes + extra_bytes
        is_its = name_bytes == len(encoded) and header[_LOCAL_BYTES:] == encoded
        if not is_its or offset + entry.bytes > self._directory_at:
            raise DamagedFeature(self.path, f"record {name} does not lie where the directory says")
        return offset, entry.bytes, entry.crc

    def _root(self) -> str:
        for name in self._by_name:
            if name.endswith("/data.pkl"):
                return name[: -len("/data.pkl")]
        raise DamagedFeature(self.path, "no data.pkl inside: not written by torch.save")

    def _small_record(self, name: str, default: bytes | None = None) -> bytes:
        entry = self._by_name.get(name)
        if entry is None:
            if default is not None:
                return default
            raise DamagedFeature(self.path, f"record {name} is missing")
        if entry.bytes > _SMALL_RECORD_BYTES:
            raise UnknownLayout(f"{name} has {entry.bytes} bytes")
        return self._content(entry)

    def _content(self, entry: Entry) -> bytes:
        offset, size, crc = self._place(entry)
        content = self._read_at(offset, size)
        if len(content) != size or crc32(content) != crc:
            raise DamagedFeature(self.path, f"record {entry.name} fails its checksum")
        return content

    def _read_at(self, offset: int, count: int) -> bytes:
        if self._whole is not None:
            return self._whole[offset : offset + count]
        try:
            return os.pread(self.file.fileno(), count, offset)
        except OSError as exc:
            raise _translated(self.path, exc, "not readable") from exc

    def _verify_one(self, entry: Entry) -> None:
        offset, remaining, wanted = self._place(entry)
        crc = 0
        while remaining:
            chunk = self._read_at(offset, min(remaining, _CHUNK_BYTES))
            if not chunk:
                raise DamagedFeature(self.path, f"record {entry.name} ends {remaining} bytes early")
            crc = crc32(chunk, crc)
            offset += len(chunk)
            remaining -= len(chunk)
        if crc != wanted:
            raise DamagedFeature(self.path, f"record {entry.name} fails its checksum")


@functools.lru_cache(maxsize=1024)
def _parsed(data_pkl: bytes) -> object:
    # Equal pickles, as of all steps of one model, are taken apart once.
    return pickle_layout.parse(data_pkl)


@contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """Open a feature file for the length of a `with`.

    Raises:
        FileNotFoundError: no such file; on a network file system also one that was just replaced.
        DamagedFeature, StoreReadError: as `Archive`.
    """
    name = os.fspath(path)
    try:
        # A folder under this name counts as damage like any other foreign content.
        file = BufferedReader(open_regular(name))
    except FileNotFoundError:
        raise
    except NoRegularFile as exc:
        raise DamagedFeature(name, "no regular file") from exc
    except IsADirectoryError as exc:
        raise DamagedFeature(name, "a folder, not a file") from exc
    except OSError as exc:
        if exc.errno in (errno.ESTALE, errno.ENOTDIR):
            raise FileNotFoundError(name) from exc
        raise StoreReadError(name, exc) from exc
    with file:
        yield Archive(name, file)


@contextmanager
def open_content(
    path: str, content: bytes | memoryview, *, file_bytes: int | None = None, first: bytes = b""
) -> Iterator[Archive]:
    """A feature file that is in memory, or its last bytes where it has `file_bytes`; `path` names it in errors.

    Of one that is not whole `first` are its first bytes.

    Raises:
        DamagedFeature: as `Archive`.
    """
    # A file in memory: every way of reading a file works on it.
    with open(os.memfd_create("vlm-cache"), "w+b", buffering=0) as file:
        os.truncate(file.fileno(), file_bytes if file_bytes is not None else len(content))
        file.write(first)
        file.seek(-len(content), os.SEEK_END)
        file.write(content)
        file.seek(0)
        yield Archive(path, file)


def check(path: str | os.PathLike[str]) -> str | None:
    """Verify a file's structure and checksums; None when sound, else the reason in words.

    Raises:
        FileNotFoundError, StoreReadError: as `open_archive`.
    """
    try:
        with open_archive(path) as archive:
            archive.verify()
            archive.record()
    except DamagedFeature as exc:
        return exc.reason
    return None


class Content(NamedTuple):
    """All bytes of a sound feature file, and its record; None for files that others wrote."""

    whole: bytes
    record: Record | None

    @property
    def fingerprint(self) -> str | None:
        """The recipe's, 64 hex digits, if the file tells one."""
        return None if self.record is None else self.record.recipe_fingerprint


def sound_content(archive: Archive) -> Content:
    """All bytes of an open file whose every checksum is right.

    Raises:
        DamagedFeature, StoreReadError: as `Archive`.
    """
    whole = archive.whole()
    archive.verify()
    return Content(whole, archive.record())


END_BYTES = 1 << 16  # a file's record and directory are within them, a few thousand as a rule


def last_bytes(archive: Archive) -> tuple[int, bytes]:
    """The length of an open file, and its last `END_BYTES`."""
    length = archive.file.seek(0, os.SEEK_END)
    archive.file.seek(max(0, length - END_BYTES))
    return length, archive.file.read()


def append_record(buffer: BytesIO, root: str, record: Record) -> None:
    """Add the record to a finished archive whose folder is `root`, without copying the tensors' bytes."""
    # Fixed date, permissions and system: equal inputs must give equal files on every host.
    info = zipfile.ZipInfo(f"{root}/{RECORD_NAME}", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(info, record.to_json())


def read_record(path: str | os.PathLike[str]) -> Record | None:
    """The store's record of a file, cheaply; None for a file that plain `torch.save` wrote.

    Raises:
        FileNotFoundError, DamagedFeature, StoreReadError: as `open_archive`.
    """
    with open_archive(Path(path)) as archive:
        return archive.record()


def recorded_fingerprint8(path: str) -> str:
    """The first 8 hex digits of the recipe in a file of ours, from its end alone; "" where that does not tell them.

    For listings of many files: damage is not noticed here, and no error is raised.
    """
    try:
        fd = os.open(path, READ_FLAGS)
    except OSError:
        return ""
    try:
        length = os.fstat(fd).st_size
        end = os.pread(fd, _END_BYTES, max(0, length - _END_BYTES))
        if len(end) != _END_BYTES or end[:4] != b"PK\x05\x06":
            return ""
        directory_at = struct.unpack_from("<I", end, 16)[0]
        found = RECORD_END.fullmatch(os.pread(fd, RECORD_END_BYTES, max(0, directory_at - RECORD_END_BYTES)))
        return found[1][:8].decode("ascii") if found else ""
    except OSError:
        return ""
    finally:
        os.close(fd)


def _translated(path: str, exc: Exception, reason: str) -> DamagedFeature | StoreReadError:
    # EINVAL is a seek to an offset that damaged bytes made up; any other number is the disk speaking.
    if isinstance(exc, OSError) and exc.errno not in (None, errno.EINVAL):
        return StoreReadError(path, exc)
    return DamagedFeature(path, f"{reason} ({exc})")
