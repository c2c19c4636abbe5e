"""The part of a store's interface that looks after the whole of it: entries, statistics, pins, verify, prune."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cache_store import families, maintenance, pins, shards, verification
from cache_store.books import Books, View
from cache_store.clock import file_system_now_s
from cache_store.dataset_patterns import named
from cache_store.keys import FeatureKey, StepKey
from cache_store.lookup import Lookup
from cache_store.name_sample import Sample
from cache_store.reader import candidates
from cache_store.reports import PinInfo, PruneReport, StoreStats, VerifyProgress, VerifyReport
from cache_store.scan import feature_names
from cache_store.shard_check import check_shards

# Packing needs Arrow, which a store that is not packed does without.
if TYPE_CHECKING:
    import torch

    from cache_store.packing import PackProgress, PackReport


class Upkeep(Lookup):
    """What operators ask of a `FeatureStore`, apart from the reading and writing of single features."""

    _books: Books

    def _begin(self) -> None:
        """Get ready in this process; called first by everything that uses the books."""
        raise NotImplementedError

    @contextmanager
    def _viewed(self) -> Iterator[View]:
        self._begin()
        with self._books.reconciled() as view:
            yield view

    def _now_s(self) -> float:
        return file_system_now_s(self.root)

    def stats(self) -> StoreStats:
        """Sizes as the files are now, and counters of all processes up to their last flush.

        The `models` of a data set are told by one feature for each recipe, of features without one by one of them:
        other tower signatures, and frame counts that the recipe does not tell, are not told apart.
        """
        from cache_store import store_stats

        with self._viewed() as view:
            return store_stats.summed_up(view, self.root, self.limits, self.pins(), self._record)

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
        sample: int | None = None,
        seed: int | None = None,
    ) -> VerifyReport:
        """Read every file and check its checksums, on `workers` CPUs (None: all, 16 at most); torch is not needed.

        With `repair` damaged files are moved into the quarantine, never deleted; what cannot be read stays.
        `sample` reads so many features only, drawn at random by their names; a `seed` draws the same names again.
        `progress` is called by worker threads, one at a time.

        Raises:
            ValueError: `workers` or `sample` is below 1, or `seed` is given without `sample`.
        """
        self._begin()
        drawn = Sample.of(sample, seed)
        only = None if drawn is None else drawn.draw(feature_names(self.root))
        set_aside = self._books.set_aside if repair else None
        loose = verification.verify_files(self.root, progress, workers=workers, set_aside=set_aside, only=only)
        found = check_shards(self.root, loose, progress, set_aside, only)
        return found if drawn is None else replace(found, seed=drawn.seed)

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

        What deleted ones take in shards counts, and is freed in those that are mostly dead, and until the store fits.

        `datasets` are names, `<dataset>@<fingerprint8>` or shell patterns; a plain name includes its second recipes.
        `model` is a tower's signature or part of the model's name in `stats`. Files that do not say their model or
        recipe never meet a condition on it. Pinned ones stay unless `keep_pinned` is False; runs are not protected
        from a person's wish.

        Raises:
            ValueError: no condition at all (use `clear()`), or one that cannot be met.
        """
        names = None if datasets is None else named(datasets)
        selection = maintenance.Selection(names, older_than_s, unused_for_s, model, recipe_fingerprint, down_to_bytes)
        now_s = file_system_now_s(self.root)
        protected = pins.Protected(pins.active(self.root, now_s) if keep_pinned else [])
        with self._viewed() as view:
            entries, beside_bytes = maintenance.entry_infos(view.table), view.waste_bytes
        if beside_bytes:
            from cache_store import rewriting

            beside_bytes -= sum(map(rewriting.dead_bytes, shards.of(self.root).view().shards))
        chosen = selection.chosen(
            self._record,
            entries,
            now_s,
            protected,
            beside_bytes=beside_bytes,
            hidden_bytes=self._hidden_bytes if beside_bytes else lambda _: 0,
        )
        return self._delete_all(chosen, dry_run=dry_run)

    def _put_into_shards(
        self, keys: Sequence[StepKey], features: torch.Tensor, *record: Mapping[str, Any] | None
    ) -> bool:
        """What `put_batch` does; False, and nothing done, where these features, or this store, need files."""
        from cache_store import batch_write

        return batch_write.put_batch(self.root, self._books, keys, features, *record)

    def pack(
        self,
        progress: Callable[[PackProgress], None] | None = None,
        *,
        datasets: Iterable[str] | None = None,
        keep: bool = False,
        dry_run: bool = False,
    ) -> PackReport:
        """Move loose files below 1 MiB into shards, where readers find them as before; new ones keep coming loose.

        A file is removed once the shard, read back from the disk, holds its bytes; with `keep` it stays. Shards that
        are mostly dead are rewritten. `datasets` as in `prune`. Killed at any moment, a second call goes on.

        Raises:
            StoreFull: no room for a shard's frame, or with `keep`, which evicts nothing, for all of it.
            StoreReadError, StoreWriteError: the disk failed; what is not packed is as it was.
        """
        from cache_store import packing

        self._begin()
        names = None if datasets is None else named(datasets)
        return packing.pack(self.root, self._books, names, progress, keep=keep, dry_run=dry_run)

    def unpack(
        self,
        progress: Callable[[PackProgress], None] | None = None,
        *,
        datasets: Iterable[str] | None = None,
        keep: bool = False,
        dry_run: bool = False,
    ) -> PackReport:
        """Write packed features as the very files that they were, and remove shards that then hold nothing.

        With `keep` the shards stay as they are, hidden by the files. Killed at any moment, a second call goes on.

        Raises:
            StoreFull: with `keep`, which evicts nothing, no room for the files beside the shards.
            StoreReadError, StoreWriteError: the disk failed; what is not unpacked is still packed.
        """
        from cache_store import unpacking

        self._begin()
        names = None if datasets is None else named(datasets)
        return unpacking.unpack(self.root, self._books, names, progress, keep=keep, dry_run=dry_run)

    def clear(self) -> PruneReport:
        """Delete every feature; settings, statistics and what was set aside stay."""
        return self._delete_all(maintenance.Chosen(list(self.entries()), 0), dry_run=False)

    def _delete_all(self, chosen: maintenance.Chosen, *, dry_run: bool) -> PruneReport:
        deleted = chosen.entries if dry_run else [one for one in chosen.entries if self._books.delete(one.name)]
        if not dry_run and shards.of(self.root).view().shards:
            from cache_store import packing, shard_index

            freed_bytes = packing.tidy(self.root, self._books, wanted_bytes=self._excess_bytes(chosen.down_to_bytes))
            if freed_bytes or deleted:
                shard_index.write(self.root)
        if not dry_run:
            families.release_empty(self.root, {entry.dataset for entry in deleted})
        return PruneReport(deleted, sum(entry.bytes for entry in deleted), dry_run, chosen.pinned)

    def _hidden_bytes(self, name: str) -> int:
        """Bytes of the packed copy that a loose file of this name hides."""
        place = shards.of(self.root).view().find(name)
        return place.bytes if place is not None and os.path.lexists(f"{self.root}/{name}") else 0

    def _excess_bytes(self, down_to_bytes: int | None) -> int:
        from cache_store import entry_table

        if down_to_bytes is None:
            return 0
        with self._viewed() as view:
            return entry_table.sum_of_bytes(view.table) + view.waste_bytes - down_to_bytes
