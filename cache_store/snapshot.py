"""The last known state of the store in one file: totals in its first line, then all entries, oldest use first.

Each has a number and is never replaced: its successor has the next number, which only one of several compactors can
take. So none needs a lock to know that what it folded is what it read.

The first line is JSON and all that a writer under a limit needs. Behind it lie three sections: the small and the
large entries as Parquet, each sorted by last use, so that an evictor begins at the front, and the counters as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import naming
from cache_store.accounts import Changes, Counters, Tail
from cache_store.atomic import publish
from cache_store.checksum import crc32
from cache_store.errors import EntryExists
from cache_store.file_systems import open_regular
from cache_store.processes import Owner

if TYPE_CHECKING:
    from pyarrow import Table

FORMAT = 2


@dataclass(frozen=True)
class Section:
    """Where a section lies, counted from the end of the first line, and the CRC-32 of its bytes."""

    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A snapshot's first line."""

    path: Path
    entries: int
    published_bytes: int
    small_bytes: int  # the part of it in small entries
    granted_bytes: int
    journals: dict[str, dict[str, Any]]
    sections: dict[str, Section]
    body_offset: int

    def tails(self) -> dict[str, Tail]:
        """How far each journal is contained in this snapshot; new objects at each call."""
        return {name: _tail(fields) for name, fields in self.journals.items()}

    def table(self, pool: str) -> Table:
        """The entries of the pool "small" or "large", least recently used first.

        Raises:
            OSError, ValueError: damaged or gone; the caller lists the files instead.
        """
        from cache_store import entry_table

        return entry_table.from_parquet(self._content(pool))

    def batches(self, pool: str) -> Iterator[list[tuple[str, int, int, int, str]]]:
        """Lists of (name, bytes, written_us, used_us, runs) of a pool, least recently used first.

        Raises:
            OSError, ValueError: as `table`, before the first list.
        """
        from cache_store import entry_table

        return entry_table.rows_of_parquet(self._content(pool))

    def counters(self) -> dict[str, Counters]:
        """Counters by data set.

        Raises:
            OSError, ValueError: as `table`.
        """
        return {dataset: Counters(*values) for dataset, values in json.loads(self._content("counters")).items()}

    def _content(self, name: str) -> bytes:
        section = self.sections[name]
        with open(self.path, "rb") as file:
            if json.loads(file.readline()).get("sections", {}).get(name) != asdict(section):
                raise ValueError("another snapshot has taken this one's place")
            file.seek(self.body_offset + section.offset)
            content = file.read(section.bytes)
        if len(content) != section.bytes or crc32(content) != section.crc32:
            raise ValueError(f"section {name} of {self.path} is damaged")
        return content


def read(path: Path) -> Snapshot | None:
    """A snapshot's first line; None when it is missing, damaged or of another format: a scan replaces it."""
    try:
        with BufferedReader(open_regular(path)) as file:
            first = file.readline()
            fields = json.loads(first)
            if fields.pop("format") != FORMAT:
                return None
            fields["sections"] = {name: Section(**section) for name, section in fields["sections"].items()}
            found = Snapshot(path=path, body_offset=len(first), **fields)
            found.tails()
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(root: Path) -> int | None:
    """The number of the snapshot that counts; None without any."""
    return max(_numbers(root), default=None)


def write(root: Path, after: int | None, table: Table, changes: Changes) -> bool:
    """Let the entries of `table` and the tails and counters of `changes` follow the snapshot numbered `after`.

    Returns whether it did: not when another compactor has written that snapshot's successor.

    Raises:
        StoreWriteError: the operating system refused.
    """
    from cache_store import entry_table

    small, large = entry_table.pools(table)
    contents = {
        "small": entry_table.to_parquet(small),
        "large": entry_table.to_parquet(large),
        "counters": json.dumps(
            {dataset: list(asdict(counters).values()) for dataset, counters in changes.counters.items()}
        ).encode(),
    }
    sections: dict[str, Section] = {}
    offset = 0
    for name, content in contents.items():
        sections[name] = Section(offset, len(content), crc32(content))
        offset += len(content)
    header = {
        "format": FORMAT,
        "entries": table.num_rows,
        "published_bytes": entry_table.sum_of_bytes(table),
        "small_bytes": entry_table.sum_of_bytes(small),
        "granted_bytes": changes.granted_bytes,
        "journals": {name: _fields(tail) for name, tail in changes.tails.items()},
        "sections": {name: asdict(section) for name, section in sections.items()},
    }
    first = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    number = (after or 0) + 1
    path = root / naming.snapshot_path(number)
    try:
        publish([first, *contents.values()], path, create_only=True)
    except EntryExists:
        return False
    # That successor may have had one and be gone: then what lies before it is gone too, as that is removed first.
    # A listing may leave out what appears meanwhile, so both are looked at.
    others = _numbers(root)
    is_late = max(others, default=number) > number or (after is not None and after not in others)
    for old in [number] if is_late else sorted(other for other in others if other < number):
        with contextlib.suppress(OSError):  # removed by another, or not ours to remove: the newest counts
            os.unlink(root / naming.snapshot_path(old))
    return not is_late


def _numbers(root: Path) -> list[int]:
    try:
        names = os.listdir(root / naming.STORE_FOLDER)
    except OSError:
        # No folder yet: nothing was ever written here.
        return []
    return [number for number in map(naming.snapshot_number, names) if number is not None]


def _fields(tail: Tail) -> dict[str, Any]:
    return {**asdict(tail), "writing": sorted(tail.writing)}


def _tail(fields: dict[str, Any]) -> Tail:
    owner = fields["owner"]
    return Tail(
        fields["offset"],
        fields["sum"],
        fields["granted"],
        None if owner is None else Owner(**owner),
        fields["is_closed"],
        set(fields["writing"]),
    )
