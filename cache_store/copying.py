"""Copies features from one store to another, whether loose, packed or remote: the same names and bytes, read back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import Literal, NamedTuple

from cache_store import naming
from cache_store.archive import Content
from cache_store.dataset_patterns import DatasetPatterns, named
from cache_store.errors import DamagedFeature, EntryExists
from cache_store.keys import VideoKey
from cache_store.maintenance import video_key_in
from cache_store.reports import EntryInfo
from cache_store.store import FeatureStore

Outcome = Literal["copied", "there", "conflict", "damaged", "gone"]

_AT_ONCE = 8
_BATCH = 256


class Copied(NamedTuple):
    """What became of one feature."""

    name: str
    outcome: Outcome
    reason: str | None
    bytes: int


def copy(
    source: FeatureStore, target: FeatureStore, *, datasets: Iterable[str] | None = None, dry_run: bool = False
) -> Iterator[Copied]:
    """Copy every feature, or those of `datasets` (as in `prune`), that the target lacks, and replace or evict none.

    A copy is read back and compared byte by byte. What is there already counts as the same if its length, its records
    and all checksums in its directory are; if not, it is a conflict and stays. Killed at any moment, a second call
    copies what is missing.

    Raises:
        StoreReadError, StoreWriteError, StoreFull: one of the stores failed; what was told is done.
    """
    names = (entry.name for entry in _meant(source.entries(), datasets))
    kept = nullcontext() if dry_run else target.reading(datasets=["*"])
    with kept, ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="vlm-cache-copy") as pool:
        while batch := list(islice(names, _BATCH)):
            yield from pool.map(lambda name: _copied(source, target, name, dry_run=dry_run), batch)


def _meant(entries: Iterator[EntryInfo], datasets: Iterable[str] | None) -> Iterator[EntryInfo]:
    if datasets is None:
        return entries
    patterns = DatasetPatterns(named(datasets))
    parts = ((entry, entry.dataset.partition("@")) for entry in entries)
    return (entry for entry, (dataset, _, recipe8) in parts if patterns.matches(dataset, recipe8 or None))


def _copied(source: FeatureStore, target: FeatureStore, name: str, *, dry_run: bool) -> Copied:
    there = target._end_of(name)
    if there is not None:
        same = there == source._end_of(name)
        return Copied(name, "there", None, 0) if same else Copied(name, "conflict", "another feature has this name", 0)
    try:
        content = source._content(name)
    except FileNotFoundError:
        return Copied(name, "gone", "deleted or evicted meanwhile", 0)
    except DamagedFeature as exc:
        return Copied(name, "damaged", exc.reason, 0)
    owner = _other_owner(source, target, name, content, dry_run=dry_run)
    if owner is not None:
        return Copied(name, "conflict", f"recipe {owner[:8]} owns the folder of this family there", 0)
    if not dry_run:
        with contextlib.suppress(EntryExists):  # another process copies too, or it was ours: compared below
            target._add(name, content)
        try:
            is_same = target._content(name).whole == content.whole
        except (FileNotFoundError, DamagedFeature):
            is_same = False
        if not is_same:
            return Copied(name, "conflict", "the copy does not read back as the same bytes", 0)
    return Copied(name, "copied", None, len(content.whole))


def _other_owner(
    source: FeatureStore, target: FeatureStore, name: str, content: Content, *, dry_run: bool
) -> str | None:
    """The recipe that owns a video family's plain folder, if this feature is to lie there and is another's.

    Without `dry_run` the family has its owner from now on, that of the source where this is a second recipe's feature.
    """
    key, fingerprint = video_key_in(content.record), content.fingerprint
    if not isinstance(key, VideoKey) or fingerprint is None:
        return None
    is_plain = naming.relative_path(key) == name
    wanted = fingerprint if is_plain else source._owner_of(key)
    if wanted is None:
        return None
    owner = target._owner_of(key) if dry_run else target._claim(key, wanted)
    return owner if is_plain and owner != fingerprint else None
