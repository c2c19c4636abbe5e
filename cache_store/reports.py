"""The values that the store hands out about itself; `to_json()` gives what the commands print."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from cache_store.naming import dataset_shown


class EntryInfo(NamedTuple):
    """One stored feature. Times are seconds since 1970, as the store's journals saw them."""

    name: str  # relative path
    bytes: int  # st_size
    mtime: float
    last_use: float  # last read or write
    recipe_fingerprint8: str | None  # None when there is none, or when only a scan knows the file

    @property
    def dataset(self) -> str:
        """With "@<fingerprint8>" for a second recipe."""
        return dataset_shown(self.name)

    def to_json(self) -> dict[str, Any]:
        return {"dataset": self.dataset, **self._asdict()}


@dataclass(frozen=True)
class ModelStats:
    """The part of a data set that one recipe made."""

    model: str | None  # as its recipe names it; None when the files do not say
    recipe_fingerprint8: str | None
    entries: int
    bytes: int


@dataclass(frozen=True)
class Int8Stats:
    """What int8 cost those features of a data set that are kept so; each feature counts once. See `int8.Loss`."""

    entries: int  # that tell
    worst_cosine: float  # of a token
    mean_cosine: float
    max_error: float
    worst_relative_error: float
    mean_relative_error: float


@dataclass(frozen=True)
class DatasetStats:
    """What one data set or episode takes up, and what was asked of it. Times are seconds since 1970."""

    entries: int
    bytes: int
    models: list[ModelStats] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    damaged: int = 0
    planned: int | None = None  # features that the last build over it wanted; None when no build said so
    planned_present: int | None = None  # how many of those are there
    oldest_write: float | None = None
    newest_write: float | None = None
    last_use: float | None = None
    int8: Int8Stats | None = None  # None where no feature is kept so, or none tells
    int8_untold: int = 0  # features kept so that tell nothing here: behind a URL those without a copy


@dataclass(frozen=True)
class PinInfo:
    """Entries that are kept from eviction for a while."""

    id: str
    datasets: list[str]
    entries: int  # single entries named beside the data sets
    expires: float | None  # seconds since 1970; None: until it is removed
    holder: str | None  # "host pid" of the reader that holds a lease; None for a pin that a person set
    note: str


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
    soft_limit_bytes: int | None = None
    evicted_unread: int = 0  # evicted without having been read since they were written
    pins: list[PinInfo] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Evicted(NamedTuple):
    """What of one data set would be evicted."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class Eviction:
    """What would have to go for new features."""

    entries: int
    bytes: int
    datasets: dict[str, Evicted]  # largest first
    replaced_bytes: int  # of files whose places the new ones take
    missing_bytes: int  # above the limit all the same: the rest is pinned, held, being written or to be kept


@dataclass(frozen=True)
class Problem:
    """One file that `verify` found wrong; paths are relative to the root."""

    path: str
    reason: str
    quarantined_to: str | None = None


@dataclass(frozen=True)
class VerifyProgress:
    """How far `verify` is."""

    files: int
    total_files: int
    bytes: int
    problems: int


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read and what was wrong with it; with `repair`, where the damaged files were set aside."""

    checked: int  # files
    problems: list[Problem]
    repaired: bool = False
    bytes: int = 0  # of the files checked
    not_features: list[str] = field(default_factory=list)  # `.pt` files that the store does not own; never touched
    seed: int | None = None  # that drew a sample; None: everything was checked

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PruneReport:
    """What `prune` or `clear` deleted; with `dry_run`, what it would delete."""

    deleted: list[EntryInfo]
    bytes: int
    dry_run: bool
    pinned: int = 0  # met every condition, and stay because they are pinned

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "deleted": [entry.to_json() for entry in self.deleted]}
