"""The part of a remote store that looks after the whole of it: statistics, verify, prune; and what it refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache_store import naming
from cache_store.accounts import Changes
from cache_store.books import View
from cache_store.errors import DamagedFeature, LocalOnly
from cache_store.keys import FeatureKey
from cache_store.maintenance import Chosen
from cache_store.name_sample import Sample
from cache_store.remote import listing
from cache_store.remote.check import check_objects
from cache_store.remote.lookup import REQUESTS_AT_ONCE, RemoteLookup
from cache_store.remote.tier import Tier
from cache_store.reports import PinInfo, PruneReport, StoreStats, VerifyProgress, VerifyReport
from cache_store.upkeep import Upkeep

if TYPE_CHECKING:
    from cache_store.packing import PackProgress, PackReport

logger = logging.getLogger("cache_store")


class RemoteUpkeep(RemoteLookup, Upkeep):
    """What operators ask of a `RemoteStore`, apart from the reading and writing of single features."""

    _tier: Tier

    def _begin(self) -> None:
        self._connection()

    def _note_damage(self, name: str, exc: DamagedFeature) -> None:
        self._tier.store._books.usage.damaged(name)
        logger.warning("%s is damaged (%s); `vlm-cache verify --repair` sets it aside", exc.path, exc.reason)

    @contextmanager
    def _viewed(self) -> Iterator[View]:
        yield View(listing.table(self._objects(), self._tier), Changes(), set())

    def _now_s(self) -> float:
        return time.time()

    def stats(self) -> StoreStats:
        """Sizes by a listing; hits, misses and damage as this machine's processes met them, up to their last flush.

        What int8 cost is told by copies.
        """
        from cache_store import store_stats

        with self._viewed() as view, self._tier.store._viewed() as here:
            counted = view._replace(changes=here.changes)
            return store_stats.summed_up(counted, self.root, self.limits, [], self._record)

    def pin(self, datasets: Iterable[str], *, for_s: float | None = None, note: str = "") -> PinInfo:
        """Refuse.

        Raises:
            LocalOnly: always.
        """
        raise LocalOnly(self.location, "pins", "nothing is evicted from it; a bucket policy prevents deletion")

    def unpin(self, which: str) -> int:
        """0: nothing is pinned."""
        return 0

    @contextmanager
    def reading(self, *, datasets: Iterable[str] = (), keys: Iterable[FeatureKey] = ()) -> Iterator[None]:
        """Keep the copies on this machine from eviction for the length of a `with`."""
        with self._tier.store.reading(datasets=datasets, keys=keys):
            yield

    def verify(
        self,
        progress: Callable[[VerifyProgress], None] | None = None,
        *,
        repair: bool = False,
        workers: int | None = None,
        sample: int | None = None,
        seed: int | None = None,
    ) -> VerifyReport:
        """Download every object and check every checksum in it; copies on this machine are not made.

        With `repair` damaged objects are copied into the quarantine and then deleted, unless replaced meanwhile.
        `sample` and `seed` as `Upkeep.verify`: a folder's store with these features draws the same ones.

        Raises:
            ValueError: `workers` or `sample` is below 1, or `seed` is given without `sample`.
            StoreReadError, StoreWriteError: the service refused or could not be reached.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"{workers} workers check nothing; give at least 1, or None for one per CPU")
        drawn, at_once = Sample.of(sample, seed), workers or REQUESTS_AT_ONCE
        report = check_objects(self._objects(), progress, workers=at_once, repair=repair, sample=drawn)
        for problem in report.problems:
            self._tier.forget(problem.path)
        return report

    def prune(self, **conditions: Any) -> PruneReport:
        """As `Upkeep.prune`, by a listing; "least recently used" is by the time of writing.

        Raises:
            LocalOnly: `unused_for_s`, which nobody records of a remote root.
            ValueError: no condition at all (use `clear()`), or one that cannot be met.
        """
        if conditions.get("unused_for_s") is not None:
            raise LocalOnly(self.location, "record of when features were read", "prune by older_than_s")
        return super().prune(**conditions)

    def _put_into_shards(self, *_: object) -> bool:
        return False  # each of its features is an object

    def pack(
        self,
        progress: Callable[[PackProgress], None] | None = None,
        *,
        datasets: Iterable[str] | None = None,
        keep: bool = False,
        dry_run: bool = False,
    ) -> PackReport:
        """Refuse.

        Raises:
            LocalOnly: always.
        """
        raise LocalOnly(self.location, "shards", "`vlm-cache migrate` copies it into a folder, which can be packed")

    def unpack(
        self,
        progress: Callable[[PackProgress], None] | None = None,
        *,
        datasets: Iterable[str] | None = None,
        keep: bool = False,
        dry_run: bool = False,
    ) -> PackReport:
        """Refuse.

        Raises:
            LocalOnly: always.
        """
        raise LocalOnly(self.location, "shards", "each of its features is an object already")

    def _delete_name(self, name: str) -> bool:
        is_deleted = self._objects().delete(name)
        self._tier.forget(name)
        return is_deleted

    def _delete_all(self, chosen: Chosen, *, dry_run: bool) -> PruneReport:
        deleted = chosen.entries
        if not dry_run:
            gone = list(self._pool().map(lambda entry: self._delete_name(entry.name), deleted))
            deleted = [entry for entry, is_gone in zip(deleted, gone, strict=True) if is_gone]
            emptied = {entry.dataset.partition("@")[0] for entry in deleted}
            self._owners.release({dataset for dataset in emptied if not self._has_videos(dataset)})
        return PruneReport(deleted, sum(entry.bytes for entry in deleted), dry_run, chosen.pinned)

    def _has_videos(self, dataset: str) -> bool:
        folders = (dataset, *self._objects().folders(f"{dataset}@"))
        return any(naming.is_feature(name) for folder in folders for name in self._objects().names_in(folder))
