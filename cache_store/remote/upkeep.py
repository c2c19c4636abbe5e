"""What is asked of a remote root as a whole, and of its objects without their content: by listings and by heads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import naming
from cache_store.accounts import Changes
from cache_store.archive import END_BYTES, Record, open_content
from cache_store.books import View
from cache_store.errors import DamagedFeature, LocalOnly, RecipeMismatch
from cache_store.keys import FeatureKey
from cache_store.maintenance import Chosen
from cache_store.name_sample import Sample
from cache_store.processes import HERE
from cache_store.reader import Stale, State, Wanted, candidates, told_mismatch
from cache_store.remote import listing
from cache_store.remote.check import check_objects
from cache_store.remote.objects import Objects, open_objects
from cache_store.remote.owners import Owners
from cache_store.remote.tier import Tier
from cache_store.reports import PinInfo, PruneReport, StoreStats, VerifyProgress, VerifyReport
from cache_store.upkeep import Upkeep

if TYPE_CHECKING:
    from cache_store.bulk import Asked
    from cache_store.packing import PackProgress, PackReport
    from cache_store.store import FeatureStore

REQUESTS_AT_ONCE = 32

logger = logging.getLogger("cache_store")


class RemoteUpkeep(Upkeep):
    """The part of a remote store that does without its features' content."""

    _tier: Tier
    _owners: Owners

    def _connect(self) -> None:
        self._connected: tuple[int, Objects, ThreadPoolExecutor] | None = None
        self._connecting = threading.Lock()
        self._connection()

    def _open_tier(self, store: FeatureStore) -> None:
        self._tier = Tier(store, self._objects)
        self._owners = Owners(self._objects, self._recorded)

    def _connection(self) -> tuple[int, Objects, ThreadPoolExecutor]:
        # Neither connections nor threads outlive a fork.
        if self._connected is None or self._connected[0] != HERE.pid:
            if self._connected is not None:
                self._connecting = threading.Lock()
            with self._connecting:
                if self._connected is None or self._connected[0] != HERE.pid:
                    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="vlm-cache-remote")
                    self._connected = (HERE.pid, open_objects(self.location), pool)
        return self._connected

    def _objects(self) -> Objects:
        return self._connection()[1]

    def _pool(self) -> ThreadPoolExecutor:
        return self._connection()[2]

    def _begin(self) -> None:
        self._connection()

    def _note_damage(self, name: str, exc: DamagedFeature) -> None:
        self._tier.store._books.usage.damaged(name)
        logger.warning("%s is damaged (%s); `vlm-cache verify --repair` sets it aside", exc.path, exc.reason)

    def _recorded(self, name: str) -> Record | None:
        """The record of a feature, by its last bytes alone, or by all where those do not hold it.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedFeature, StoreReadError.
        """
        found = self._objects().tail(name, END_BYTES)
        if found is None:
            raise FileNotFoundError(f"{self.location}/{name}")
        path = f"{self.location}/{name}"
        try:
            with open_content(path, found[0], file_bytes=found[1]) as opened:
                return opened.record()
        except DamagedFeature:
            if found[1] <= END_BYTES:
                raise
        whole = self._objects().get(name, lambda content, _: content)
        if whole is None:
            raise FileNotFoundError(path)
        with open_content(path, whole) as opened:
            return opened.record()

    def file_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> Path | None:
        """Where a copy of the feature lies once it was read; None where there is no feature."""
        name = self._relative(key, recipe)
        return None if self._objects().head(name) is None else self.root / name

    def bytes_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> int | None:
        """Bytes of the object that `put` would replace; None when there is none."""
        info = self._objects().head(self._relative(key, recipe))
        return None if info is None else info.bytes

    def state_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> State:
        """As `Lookup.state_of`, by asking for the object itself: no listing hides a put."""
        return self._state(key, Wanted.of(recipe))

    def _state(self, key: FeatureKey, wanted: Wanted) -> State:
        if wanted.fingerprint is None:
            found = any(self._objects().head(name) for name in candidates(key, None))
            return "present" if found else "missing"
        is_fitting, stale = self._looked_for(key, wanted)
        return "present" if is_fitting else "stale" if stale is not None else "missing"

    def _looked_for(self, key: FeatureKey, wanted: Wanted) -> tuple[bool, Stale | None]:
        stale: Stale | None = None
        for name in candidates(key, wanted.fingerprint):
            try:
                record = self._recorded(name)
            except (FileNotFoundError, DamagedFeature):
                # A damaged one is as good as none: the build makes it again.
                continue
            if record is None or wanted.fits(record):
                return True, None
            stale = stale or Stale(name, record)
        return False, stale

    def states(self, asked: Asked) -> Iterator[State]:
        """As `Lookup.states`: what is missing by one listing, the recipes of the rest by their last bytes."""
        from cache_store.bulk import KnownRecipes, in_batches

        with self._viewed() as view:
            known = KnownRecipes(view.table)
        for batch in in_batches(asked):
            told = known.states(batch)
            unsure = [pair for pair, state in zip(batch, told, strict=True) if state is None]
            answers = self._pool().map(lambda pair: self._state(*pair), unsure)
            for state in told:
                yield next(answers) if state is None else state

    def mismatch_of(self, key: FeatureKey, *, recipe: Mapping[str, Any]) -> RecipeMismatch | None:
        """As `Lookup.mismatch_of`."""
        wanted = Wanted.of(recipe)
        is_fitting, stale = self._looked_for(key, wanted)
        return None if is_fitting or stale is None else told_mismatch(self.location, stale, key, wanted)

    @contextmanager
    def _viewed(self) -> Iterator[View]:
        yield View(listing.table(self._objects(), self._tier), Changes(), set())

    def _now_s(self) -> float:
        return time.time()

    def stats(self) -> StoreStats:
        """Sizes by a listing; hits, misses and damage as this machine's processes met them, up to their last flush."""
        from cache_store import store_stats

        with self._viewed() as view, self._tier.store._viewed() as here:
            counted = view._replace(changes=here.changes)
            return store_stats.summed_up(counted, self.root, self.limits, [], self._record)

    def pins(self) -> list[PinInfo]:
        """None: nothing is evicted."""
        return []

    def pinned_bytes(self, *, besides: Asked = ()) -> int:
        """0: nothing is pinned."""
        return 0

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
            emptied = {entry.dataset for entry in deleted}
            self._owners.release({one for one in emptied if not any(map(naming.is_feature, self._in_folder(one)))})
        return PruneReport(deleted, sum(entry.bytes for entry in deleted), dry_run, chosen.pinned)

    def _in_folder(self, folder: str) -> Iterator[str]:
        return self._objects().names_in(folder)
