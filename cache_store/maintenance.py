"""What an operator asks of a whole store: its entries, and which to delete."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cache_store import naming
from cache_store.archive import Record
from cache_store.dataset_patterns import DatasetPatterns, check_pattern
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.keys import FeatureKey, VideoKey
from cache_store.pins import Protected
from cache_store.reports import EntryInfo

if TYPE_CHECKING:
    from pyarrow import Table

# The record of a feature by its relative path; raises as `opening.read_record`.
RecordOf = Callable[[str], Record | None]

_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


class Chosen(NamedTuple):
    """What a selection means of a store's entries."""

    entries: list[EntryInfo]
    pinned: int  # entries that met every condition and stay because they are pinned
    down_to_bytes: int | None = None  # what the store is to fit, its shards' dead bytes included


@dataclass(frozen=True)
class Selection:
    """Which entries `prune` means: those that meet every condition given.

    Raises:
        ValueError: no condition at all, or one that nothing can meet.
    """

    datasets: tuple[str, ...] | None = None  # as `DatasetPatterns` takes them
    older_than_s: float | None = None  # since written
    unused_for_s: float | None = None
    model: str | None = None  # whole words of the model's name in `stats`, as its tower's signature is one
    recipe_fingerprint: str | None = None  # or its beginning, at least 8 hex digits
    down_to_bytes: int | None = None  # of those that meet the rest, the least recently used until the store fits

    def __post_init__(self) -> None:
        if all(condition is None for condition in vars(self).values()):
            raise ValueError("prune() without a condition would delete everything; call clear() for that")
        for dataset in self.datasets or ():
            check_pattern(dataset)
        if self.recipe_fingerprint is not None and not _FINGERPRINT.fullmatch(self.recipe_fingerprint):
            raise ValueError(f"recipe {self.recipe_fingerprint!r} is not 8 to 64 lower-case hex digits")
        for field in ("older_than_s", "unused_for_s", "down_to_bytes"):
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise ValueError(f"{field} is {value!r}, not a number of at least 0")

    def chosen(
        self,
        record_of: RecordOf,
        entries: Iterable[EntryInfo],
        now_s: float,
        protected: Protected,
        *,
        beside_bytes: int = 0,
        hidden_bytes: Callable[[str], int] = lambda _: 0,
    ) -> Chosen:
        """Those of a store's `entries` that it means at `now_s`, the file system's clock.

        `beside_bytes` are taken by what is no entry; of these an entry takes its `hidden_bytes` with it.
        """
        patterns = None if self.datasets is None else DatasetPatterns(self.datasets)
        made_how = _MadeHow(record_of, self.model, self.recipe_fingerprint)
        found: list[EntryInfo] = []
        total_bytes, pinned = beside_bytes, 0
        for entry in entries:
            total_bytes += entry.bytes
            if not self._meets(entry, now_s, patterns) or not made_how.fits(entry):
                continue
            if protected.covers(entry.name):
                pinned += 1
            else:
                found.append(entry)
        if self.down_to_bytes is not None:
            found = _least_recent_down_to(found, total_bytes, self.down_to_bytes, hidden_bytes)
        return Chosen(found, pinned, self.down_to_bytes)

    def _meets(self, entry: EntryInfo, now_s: float, patterns: DatasetPatterns | None) -> bool:
        if patterns is not None:
            dataset, _, fingerprint8 = entry.dataset.partition("@")
            if not patterns.matches(dataset, fingerprint8 or None):
                return False
        if self.older_than_s is not None and now_s - entry.mtime < self.older_than_s:
            return False
        return self.unused_for_s is None or now_s - entry.last_use >= self.unused_for_s


class _MadeHow:
    """Whether files were made by a model or a recipe, by what they say of themselves; one read for each recipe.

    A video's tower signature and frame count are in its key and not in its recipe: asked for a model, each is read.
    """

    def __init__(self, record_of: RecordOf, model: str | None, recipe_fingerprint: str | None) -> None:
        self._record_of = record_of
        self._model = model
        self._recipe_fingerprint = recipe_fingerprint
        self._answers: dict[str, bool] = {}

    def fits(self, entry: EntryInfo) -> bool:
        if self._model is None and self._recipe_fingerprint is None:
            return True
        if entry.recipe_fingerprint8 is None or (self._model is not None and naming.is_video(entry.name)):
            return self._record_fits(entry.name)
        if entry.recipe_fingerprint8 not in self._answers:
            self._answers[entry.recipe_fingerprint8] = self._record_fits(entry.name)
        return self._answers[entry.recipe_fingerprint8]

    def _record_fits(self, name: str) -> bool:
        from cache_store.store_stats import model_in

        try:
            record = self._record_of(name)
        except (FileNotFoundError, DamagedFeature, StoreReadError):
            # Not readable, so not known to be meant: prune must not guess.
            return False
        if record is None:
            return False
        if self._model is not None and f" {self._model} " not in f" {model_in(record)} ":
            return False
        wanted = self._recipe_fingerprint
        return wanted is None or (record.recipe_fingerprint or "").startswith(wanted)


def entry_infos(table: Table) -> Iterator[EntryInfo]:
    """All entries, sorted by name."""
    from cache_store import entry_table

    for columns in entry_table.by_name(table):
        yield from map(EntryInfo, *columns)


def stored_keys(record_of: RecordOf, names: Iterable[str], dataset: str | None) -> Iterator[FeatureKey]:
    """The keys of the named files, of one data set or all, sorted by path; without files that do not tell their key."""
    for name in sorted(names):
        parsed = naming.parse(name)
        if parsed is not None and dataset in (None, parsed.dataset):
            key = parsed.key or recorded_key(record_of, name)
            if key is not None:
                yield key


def recorded_key(record_of: RecordOf, name: str) -> VideoKey | None:
    """The video key that a file's record tells; None when it tells none, is damaged or went away."""
    try:
        return video_key_in(record_of(name))
    except (FileNotFoundError, DamagedFeature):
        return None


def video_key_in(record: Record | None) -> VideoKey | None:
    """The video key that a record tells, if it does."""
    try:
        if record is None or record.key is None or record.key["kind"] != "video":
            return None
        fields = record.key
        return VideoKey(fields["dataset"], fields["video_id"], fields["nframe"], fields["model_signature"])
    except KeyError:
        return None


def _least_recent_down_to(
    entries: list[EntryInfo], total_bytes: int, down_to_bytes: int, hidden_bytes: Callable[[str], int]
) -> list[EntryInfo]:
    """The least recently used of `entries` that must go until `total_bytes` is at most `down_to_bytes`."""
    chosen = []
    for entry in sorted(entries, key=lambda entry: (entry.last_use, entry.name)):
        if total_bytes <= down_to_bytes:
            break
        chosen.append(entry)
        total_bytes -= entry.bytes + hidden_bytes(entry.name)
    return chosen
