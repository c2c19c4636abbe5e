"""The feature store: a folder of `.pt` files under a size limit, shared by any number of processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

from cache_store import codec, families, maintenance, meta, naming, pins, settings, verification
from cache_store.archive import Record
from cache_store.books import Books, NewFile
from cache_store.bulk import KnownRecipes, with_wanted
from cache_store.clock import file_system_now_s
from cache_store.errors import StoreWriteError
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.reader import OnStale, Reader, State, Wanted, candidates
from cache_store.reports import EntryInfo, PinInfo, PruneReport, StoreStats, VerifyProgress, VerifyReport
from cache_store.scan import feature_names
from cache_store.settings import Settings

logger = logging.getLogger("cache_store")


class PutItem(NamedTuple):
    """One feature for `put_many`; the fields are `put`'s arguments."""

    key: FeatureKey
    value: object
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


class FeatureStore:
    """Features by key, one atomic file each. Safe for threads, forks and processes; picklable.

    `limit_bytes` is never passed; above `soft_limit_bytes` eviction begins without making a writer wait. Both are kept
    for later openings; None takes the kept one, and 0 or less means none. Entries put or protected under `run_id` are
    not evicted while a process of that run is at work.

    Raises:
        StoreFormatError: `root` cannot be a store.
        InvalidKey: `run_id` has characters other than letters, digits, ".", "_", ":" and "-".
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        limit_bytes: int | None = None,
        soft_limit_bytes: int | None = None,
        run_id: str | None = None,
    ) -> None:
        if run_id is not None:
            naming.check_run_id(run_id)
        self.root = Path(root).absolute()
        self.run_id = run_id
        self._video_dtype: str | None = None  # of the video features put since cache_meta.json was written
        self._assemble(settings.open_root(self.root))
        if limit_bytes is not None or soft_limit_bytes is not None:
            self.set_limit(limit_bytes, soft_limit_bytes=soft_limit_bytes)

    def _assemble(self, limits: Settings) -> None:
        self._pid = os.getpid()
        self._books = Books(self.root, self.run_id)
        self._books.budget.limits = limits
        self._reader = Reader(self.root, self._books.journal, self._books.usage)
        # Not weakref.finalize: workers of a DataLoader end without running what atexit would run.
        Finalize(self, _write_the_rest, args=(self._books,), exitpriority=0)

    def _begin(self) -> None:
        # A forked child must neither write into its parent's journal nor wait for its parent's threads'
        # locks.
        if self._pid != os.getpid():
            self._video_dtype = None
            self._assemble(self._books.budget.limits)
        self._books.journal.touch()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (str(self.root), self.run_id))

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.root)!r}, limit_bytes={self.limit_bytes}, run_id={self.run_id!r})"

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes, None for none."""
        return self._books.budget.limits.limit_bytes

    @property
    def soft_limit_bytes(self) -> int | None:
        """Where eviction begins, in bytes; None: at the limit."""
        return self._books.budget.limits.soft_limit_bytes

    def set_limit(
        self, limit_bytes: int | None = None, *, soft_limit_bytes: int | None = None, remember: bool = True
    ) -> None:
        """Change the limits; None leaves one as it is, 0 or less means none. The next put evicts what is too much.

        With `remember` later openings take them too, unless the store cannot be written to.

        Raises:
            ValueError: a soft limit above the limit.
        """
        limits = self._books.budget.limits.changed(limit_bytes, soft_limit_bytes)
        if remember and limits != self._books.budget.limits:
            try:
                settings.remember(self.root, limits)
            except StoreWriteError as exc:
                # Readers of a read-only store pass their usual limit; they will never need it.
                logger.info("the limit is not remembered: %s", exc)
        self._books.budget.limits = limits

    def put(
        self,
        key: FeatureKey,
        value: object,
        *,
        recipe: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        create_only: bool = False,
    ) -> Path:
        """Store a feature, replacing what the key holds, and return its file; on any error the old one stays.

        Of a video family the first recipe owns the plain folder, another one gets `<dataset>@<fingerprint8>`.

        Raises:
            InvalidKey, TypeError, ValueError: key, value, recipe or provenance cannot be stored.
            EntryExists: with `create_only`, when a file of this name is there already.
            StoreFull, StoreWriteError: nothing was published.
        """
        self._begin()
        file = self._new_file(PutItem(key, value, recipe, provenance))
        self._books.publish(file, create_only=create_only)
        return self.root / file.name

    def put_many(self, items: Iterable[PutItem]) -> list[Path]:
        """Store several features with one flush to the disk, each as `put` would; returns their files in order.

        All are in memory at once. Of several items with one key the last one counts.

        Raises:
            InvalidKey, TypeError, ValueError, StoreFull: nothing was published.
            StoreWriteError: the disk failed; some may be published, all others are as they were.
        """
        self._begin()
        files = {file.name: file for file in map(self._new_file, items)}
        self._books.publish_many(list(files.values()))
        return [self.root / name for name in files]

    def get(
        self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None, on_stale: OnStale = "error"
    ) -> object | None:
        """The feature as it was put, on the CPU, or None for a miss. A damaged file is set aside and a miss.

        Without `recipe` nothing is compared; a file without one fits any. `on_stale` says what another
        recipe's feature means: an error, a miss, or use it.

        Raises:
            RecipeMismatch, InvalidKey, StoreReadError.
            ValueError: `on_stale` is none of the three.
        """
        self._begin()
        if on_stale not in ("error", "miss", "use"):
            raise ValueError(f"on_stale is {on_stale!r}; give 'error', 'miss' or 'use'")
        return self._reader.read(key, Wanted.of(recipe), on_stale)

    def contains(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> bool:
        """Whether `get` would find a fitting feature; its content is not verified."""
        return self.state_of(key, recipe=recipe) == "present"

    def state_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> State:
        """`"missing"`, `"present"`, or `"stale"` when only another recipe's feature is there."""
        self._begin()
        return self._reader.state(key, Wanted.of(recipe))

    def states(self, asked: Iterable[tuple[FeatureKey, Mapping[str, Any] | None]]) -> Iterator[State]:
        """As `state_of` for many (key, recipe) pairs, in their order; the files are listed once, at the first.

        A million steps take seconds; of videos each is looked up by itself.
        """
        self._begin()
        with self._books.reconciled() as view:
            known = KnownRecipes(view.table)
        for key, wanted in with_wanted(asked):
            state = known.state(key, wanted) if isinstance(key, StepKey) else None
            yield self._reader.state(key, wanted) if state is None else state

    def path_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> Path:
        """The file that `put` would write now; it need not exist."""
        name = naming.relative_path(key)
        fingerprint = Wanted.of(recipe).fingerprint
        if isinstance(key, VideoKey) and fingerprint is not None:
            owner = families.owner_of(self.root, key)
            if owner not in (None, fingerprint):
                name = naming.relative_path(key, second_recipe=fingerprint)
        return self.root / name

    def delete(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> bool:
        """Delete the file at `path_of(key)`; False when there was none."""
        self._begin()
        return self._books.delete(self._relative(key, recipe))

    def protect(self, keys: Iterable[FeatureKey], *, recipe: Mapping[str, Any] | None = None) -> None:
        """Keep existing entries from eviction while this store's run is active, as if the run had put them.

        Raises:
            ValueError: the store was opened without `run_id`.
        """
        self._begin()
        if self.run_id is None:
            raise ValueError("protect() needs a store that was opened with run_id=")
        self._books.protect([self._relative(key, recipe) for key in keys], self.run_id)

    def keys(self, dataset: str | None = None) -> Iterator[FeatureKey]:
        """The stored keys in the order of their paths.

        Video files of the old scripts are left out: their names are hashes and they carry no record.
        """
        for name in sorted(feature_names(self.root)):
            parsed = naming.parse(name)
            if parsed is None or (dataset is not None and parsed.dataset != dataset):
                continue
            key = parsed.key or maintenance.recorded_key(self.root / name)
            if key is not None:
                yield key

    def entries(self) -> Iterator[EntryInfo]:
        """Everything stored, sorted by name, as the files are now; a few thousand in memory at a time."""
        self._begin()
        with self._books.reconciled() as view:
            table = view.table
        return maintenance.entry_infos(table)

    def stats(self) -> StoreStats:
        """Sizes as the files are now, and counters of all processes up to their last flush."""
        from cache_store import store_stats

        self._begin()
        with self._books.reconciled() as view:
            return store_stats.summed_up(view, self.root, self._books.budget.limits, self.pins())

    def remember_plan(self, title: str, keys: Iterable[tuple[FeatureKey, Mapping[str, Any] | None]]) -> None:
        """Keep which features a build wants, for the coverage in `stats`; a later plan of this title replaces it.

        Raises:
            StoreWriteError: the operating system refused.
        """
        from cache_store import plans

        plans.remember(self.root, title, (self._relative(key, recipe) for key, recipe in keys))

    def pin(self, datasets: Iterable[str], *, for_s: float | None = None, note: str = "") -> PinInfo:
        """Keep data sets from eviction for `for_s` seconds, None: until `unpin`. Shell patterns (`recv_*`) are fine.

        A person's `prune` spares them too, unless told otherwise.

        Raises:
            InvalidKey, ValueError: no data set, or an impossible name or duration.
            StoreWriteError: the operating system refused.
        """
        return pins.add(self.root, datasets=datasets, for_s=for_s, note=note).info()

    def unpin(self, which: str) -> int:
        """Remove the pins with this id, or of this data set; returns how many there were.

        Raises:
            StoreWriteError: the operating system refused.
        """
        return pins.remove(self.root, which)

    def pins(self) -> list[PinInfo]:
        """The pins and readers' leases that hold now."""
        return [pin.info() for pin in pins.active(self.root, file_system_now_s(self.root))]

    @contextmanager
    def reading(self, *, datasets: Iterable[str] = (), keys: Iterable[FeatureKey] = ()) -> Iterator[None]:
        """Hold a reader's lease for the length of a `with`: what it names is not evicted while this process lives.

        Raises:
            InvalidKey, ValueError: neither data sets nor keys, or an impossible name.
            StoreWriteError: the operating system refused.
        """
        names = [name for key in keys for name in candidates(key, None)]
        with pins.held(self.root, datasets=datasets, names=names):
            yield

    def verify(
        self,
        progress: Callable[[VerifyProgress], None] | None = None,
        *,
        repair: bool = False,
        workers: int | None = None,
    ) -> VerifyReport:
        """Read every file and check its checksums, on `workers` CPUs (None: all, 16 at most); torch is not needed.

        With `repair` damaged files are moved into the quarantine, never deleted; what cannot be read stays.
        `progress` is called by worker threads, one at a time.

        Raises:
            ValueError: `workers` is below 1.
        """
        self._begin()
        set_aside = self._books.set_aside if repair else None
        return verification.verify_files(self.root, progress, workers=workers, set_aside=set_aside)

    def prune(
        self,
        *,
        datasets: Iterable[str] | None = None,
        older_than_s: float | None = None,
        unused_for_s: float | None = None,
        model: str | None = None,
        recipe_fingerprint: str | None = None,
        down_to_bytes: int | None = None,
        keep_pinned: bool = True,
        dry_run: bool = False,
    ) -> PruneReport:
        """Delete the entries that meet every condition; with `down_to_bytes` least recently used ones first.

        `datasets` are names, `<dataset>@<fingerprint8>` or shell patterns; a plain name includes its second recipes.
        `model` is a tower's signature or part of the model's name in `stats`. Files that do not say their model or
        recipe never meet a condition on it. Pinned ones stay unless `keep_pinned` is False; runs are not protected
        from a person's wish.

        Raises:
            ValueError: no condition at all (use `clear()`), or one that cannot be met.
        """
        names = None if datasets is None else tuple(datasets)
        selection = maintenance.Selection(names, older_than_s, unused_for_s, model, recipe_fingerprint, down_to_bytes)
        now_s = file_system_now_s(self.root)
        protected = pins.Protected(pins.active(self.root, now_s) if keep_pinned else [])
        chosen = selection.chosen(self.root, self.entries(), now_s, protected)
        return self._delete_all(chosen, dry_run=dry_run)

    def clear(self) -> PruneReport:
        """Delete every feature; settings, statistics and what was set aside stay."""
        return self._delete_all(maintenance.Chosen(list(self.entries()), 0), dry_run=False)

    def flush_meta(self) -> None:
        """Rewrite `cache_meta.json` from what is stored; `close` does it after video features were put."""
        self._begin()
        with self._books.reconciled() as view:
            meta.write(self.root, view.table, self._video_dtype)
            self._video_dtype = None

    def close(self) -> None:
        """Write what is still in memory. The store can be used again; it then opens a new journal."""
        self._begin()
        if self._video_dtype is not None:
            self.flush_meta()
        self._books.close()

    def _new_file(self, item: PutItem) -> NewFile:
        if item.value is None:
            raise TypeError("None cannot be stored: get() returns it for a miss")
        naming.relative_path(item.key)
        wanted = Wanted.of(item.recipe)
        record = Record(maintenance.key_fields(item.key), item.recipe, wanted.fingerprint, item.provenance)
        buffers = [codec.encode(item.value, record=record)]
        if isinstance(item.key, VideoKey):
            self._video_dtype = codec.feature_dtype(item.value) or self._video_dtype
        name = self._claimed_name(item.key, wanted.fingerprint)
        return NewFile(name, buffers, (wanted.fingerprint or "")[:8])

    def _claimed_name(self, key: FeatureKey, fingerprint: str | None) -> str:
        if isinstance(key, VideoKey) and fingerprint is not None:
            owner = families.claim(self.root, key, fingerprint)
            return naming.relative_path(key, second_recipe=None if owner == fingerprint else fingerprint)
        return naming.relative_path(key)

    def _relative(self, key: FeatureKey, recipe: Mapping[str, Any] | None) -> str:
        return self.path_of(key, recipe=recipe).relative_to(self.root).as_posix()

    def _delete_all(self, chosen: maintenance.Chosen, *, dry_run: bool) -> PruneReport:
        deleted = chosen.entries if dry_run else [one for one in chosen.entries if self._books.delete(one.name)]
        if not dry_run:
            families.release_empty(self.root, {entry.dataset for entry in deleted})
        return PruneReport(deleted, sum(entry.bytes for entry in deleted), dry_run, chosen.pinned)


def _reopened(root: str, run_id: str | None) -> FeatureStore:
    return FeatureStore(root, run_id=run_id)


def _write_the_rest(books: Books) -> None:
    # A store that nobody closed; in a forked child journal and usage do nothing.
    books.usage.flush()
    books.journal.close()
