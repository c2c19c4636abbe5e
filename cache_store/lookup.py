"""The questions that a store answers without changing it: which features it has, where they lie, what is pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cache_store import families, maintenance, naming, pins
from cache_store.archive import Record
from cache_store.books import View
from cache_store.errors import DamagedFeature, RecipeMismatch
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.opening import entry_of, file_of, open_feature, read_record
from cache_store.reader import State, Wanted, candidates, mismatch, names_of_second_recipes, state
from cache_store.reports import EntryInfo, Eviction, PinInfo
from cache_store.settings import Settings

# Whole stores are asked about by few: readers do without Arrow.
if TYPE_CHECKING:
    from cache_store.bulk import Asked

T = TypeVar("T")


class Lookup:
    """What a `FeatureStore` and a `ReadOnlyStore` both answer."""

    root: Path
    _list_above = 20_000  # so many keys are dearer to ask for one by one than by a listing

    @property
    def limits(self) -> Settings:
        """The limits under which this process works."""
        raise NotImplementedError

    def _viewed(self) -> AbstractContextManager[View]:
        """All entries as the files are now."""
        raise NotImplementedError

    def _now_s(self) -> float:
        """Seconds since 1970 by the clock of the store's file system."""
        raise NotImplementedError

    @property
    def location(self) -> str:
        """What the store is opened by again: its folder, or the URL of a remote root."""
        return str(self.root)

    def _record(self, name: str) -> Record | None:
        """The record of a feature by its relative path; raises as `opening.read_record`."""
        return read_record(self.root, name)

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes, None for none."""
        return self.limits.limit_bytes

    @property
    def soft_limit_bytes(self) -> int | None:
        """Where eviction begins, in bytes; None: at the limit."""
        return self.limits.soft_limit_bytes

    def path_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> Path:
        """The file that `put` would write now; it need not exist, and a packed feature has none."""
        name = naming.relative_path(key)
        fingerprint = Wanted.of(recipe).fingerprint
        if isinstance(key, VideoKey) and fingerprint is not None:
            owner = families.owner_of(self.root, key)
            name = families.name_for(self.root, key, fingerprint, is_owner=owner in (None, fingerprint))
        return self.root / name

    def file_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> Path | None:
        """Where the feature at `path_of(key)` lies: there, or in which shard; None where there is none."""
        return file_of(self.root, self._relative(key, recipe))

    def bytes_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> int | None:
        """Bytes of the file, loose or packed, at `path_of(key)`; None when there is none."""
        entry = entry_of(self.root, self._relative(key, recipe))
        return None if entry is None else entry.bytes

    def contains(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> bool:
        """Whether `get` would find a fitting feature; its content is not verified."""
        return self.state_of(key, recipe=recipe) == "present"

    def state_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> State:
        """`"missing"`, `"present"`, or `"stale"` when only another recipe's feature is there."""
        return state(self.root, key, Wanted.of(recipe))

    def states(self, asked: Asked) -> Iterator[State]:
        """As `state_of` for many pairs, in their order; the files are listed once, at the first.

        A million steps take seconds; each video that is there is looked up by itself. Some thousand pairs are asked for
        at once, before the first of their states comes.
        """
        from cache_store.bulk import KnownRecipes, in_batches

        with self._viewed() as view:
            known = KnownRecipes(view.table)
        for batch in in_batches(asked):
            found = known.states(batch)
            for (key, wanted), told in zip(batch, found, strict=True):
                yield state(self.root, key, wanted) if told is None else told

    def record_of(self, key: FeatureKey) -> Record | None:
        """What the store wrote beside the plain feature of a key; None if others wrote it, or nothing sound is there.

        Raises:
            StoreReadError: the disk.
        """
        try:
            return self._record(naming.relative_path(key))
        except (FileNotFoundError, DamagedFeature):
            return None

    def record_of_each(self, keys: Sequence[FeatureKey]) -> Iterator[Record | None]:
        """As `record_of` for many keys, in their order."""
        return self._asked(self.record_of, keys)

    def _asked(self, ask: Callable[[FeatureKey], T], keys: Sequence[FeatureKey]) -> Iterator[T]:
        return map(ask, keys)

    def records_of(self, key: VideoKey) -> Iterator[Record]:
        """What the store wrote beside each recipe's feature of a key: what a plain reader finds comes first.

        Files of other writers have an empty record, which fits any recipe. One at a time, because who asks may be
        content with the first.

        Raises:
            StoreReadError: the disk.
        """
        for names in (candidates(key, None), names_of_second_recipes(self.root, key)):
            for name in names:
                try:
                    yield replace(read_record(self.root, name) or Record(), name=name)
                except (FileNotFoundError, DamagedFeature):
                    continue

    def video_path_of(self, key: VideoKey, *, recipe: Mapping[str, Any]) -> str | None:
        """Which video the feature that `get` would find was built from, relative to its data folder.

        None where nothing fits, or what fits tells no recipe: others' paths are relative to what only they know.

        Raises:
            StoreReadError: the disk.
        """
        wanted = Wanted.of(recipe)
        for name in candidates(key, wanted.fingerprint):
            try:
                record = self._record(name)
                if not wanted.fits(record):
                    continue
                tree = self._tree(name) if record is not None and record.recipe_fingerprint is not None else None
            except (FileNotFoundError, DamagedFeature):
                continue
            return tree.get("video_path") if isinstance(tree, dict) else None
        return None

    def _tree(self, name: str) -> object | None:
        """What a feature's file holds, without the content of its tensors; raises as `opening.open_feature`."""
        with open_feature(self.root, name) as archive:
            return archive.tree()

    def contains_each(self, keys: Sequence[FeatureKey]) -> list[bool]:
        """As `contains` for many keys, in their order; above some thousand by one listing."""
        if len(keys) <= self._list_above:
            return list(self._asked(self.contains, keys))
        return [state == "present" for state in self.states((key, None) for key in keys)]

    def mismatch_of(self, key: FeatureKey, *, recipe: Mapping[str, Any]) -> RecipeMismatch | None:
        """The error with which `get` would refuse the feature of another recipe that lies there; None: it would not."""
        return mismatch(self.root, key, Wanted.of(recipe))

    def entries(self) -> Iterator[EntryInfo]:
        """Everything stored, sorted by name, as the files are now; a few thousand in memory at a time."""
        with self._viewed() as view:
            table = view.table
        return maintenance.entry_infos(table)

    def size(self) -> tuple[int, int]:
        """How many features are stored, and their bytes."""
        from cache_store import entry_table

        with self._viewed() as view:
            return view.table.num_rows, entry_table.sum_of_bytes(view.table)

    def pins(self) -> list[PinInfo]:
        """The pins and readers' leases that hold now."""
        return [pin.info() for pin in pins.active(self.root, self._now_s())]

    def pinned_bytes(self, *, besides: Asked = ()) -> int:
        """The size of what pins and readers' leases keep from eviction now, without the features of these recipes.

        `besides` is not looked at when nothing is pinned.
        """
        from cache_store import forecast

        active = pins.active(self.root, self._now_s())
        if not active:
            return 0
        with self._viewed() as view:
            return forecast.pinned_bytes(view.table, pins.Protected(active), besides)

    def eviction_for(
        self, new_bytes: int, *, new_features: int, keeping: Asked = (), is_replacing: bool = False
    ) -> Eviction:
        """What would have to go for `new_bytes` more in `new_features` files, if all of them came at once now.

        The features of `keeping` stay, as a run's own do. With `is_replacing` the new files take their places. An
        evictor takes a little more than it must, so that the next writers find room.
        """
        from cache_store import forecast

        protected = pins.Protected(pins.active(self.root, self._now_s()))
        with self._viewed() as view:
            growth = forecast.Growth(new_bytes, new_features)
            return forecast.eviction(view, self.limits, protected, growth, keeping, is_replacing=is_replacing)

    def _relative(self, key: FeatureKey, recipe: Mapping[str, Any] | None) -> str:
        if isinstance(key, StepKey):
            return naming.relative_path(key)
        return self.path_of(key, recipe=recipe).relative_to(self.root).as_posix()
