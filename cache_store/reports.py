"""The values that the store hands out about itself; `to_json()` gives what the commands print."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class EntryInfo:
    """One stored feature. Times are seconds since 1970, as the store's journals saw them."""

    name: str  # relative path
    dataset: str  # with "@<fingerprint8>" for a second recipe
    bytes: int  # st_size
    mtime: float
    last_use: float  # last read or write
    recipe_fingerprint8: str | None  # None when there is none, or when only a scan knows the file

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DatasetStats:
    """What one data set or episode takes up."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class StoreStats:
    """The whole store at one moment. Counters run since the statistics began, over all processes."""

    entries: int
    bytes: int
    limit_bytes: int | None
    datasets: dict[str, DatasetStats]
    hits: int
    misses: int
    evictions: int
    damaged: int  # damaged files met by readers
    oldest: float | None  # least recent use, seconds since 1970
    newest: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """One file that `verify` found wrong; `path` is relative to the root."""

    path: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read and what was wrong with it."""

    checked: int
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PruneReport:
    """What `prune` or `clear` deleted; with `dry_run`, what it would delete."""

    deleted: list[EntryInfo]
    bytes: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
