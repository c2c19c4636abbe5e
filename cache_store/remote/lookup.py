"""What is asked of a remote root without changing it, nor any copy: which features are there, by heads and listings."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import int8, naming
from cache_store.archive import END_BYTES, Archive, Record, open_content
from cache_store.dataset_names import names_to_search
from cache_store.errors import DamagedFeature, InexactFeature, LocalOnly, RecipeMismatch
from cache_store.keys import FeatureKey, VideoKey
from cache_store.lookup import Lookup, T
from cache_store.processes import HERE
from cache_store.reader import Stale, State, Wanted, candidates, told_mismatch
from cache_store.remote import tier
from cache_store.remote.objects import Objects, Transfers, open_objects
from cache_store.remote.owners import Owners
from cache_store.reports import PinInfo
from cache_store.settings import Settings

if TYPE_CHECKING:
    from cache_store.bulk import Asked

REQUESTS_AT_ONCE = 32


class RemoteLookup(Lookup):
    """What a `RemoteStore` and a `ReadOnlyStore` of a URL both answer. `root` is the folder of the copies."""

    _list_above = 1000  # which is what one page of a listing tells

    def _connect(self, url: str | os.PathLike[str]) -> None:
        self._url = os.fspath(url).rstrip("/")
        self._connected: tuple[int, Objects, ThreadPoolExecutor] | None = None
        self._connecting = threading.Lock()
        self.root = tier.folder_of(self._url, self._objects().service)
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

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    @property
    def limits(self) -> Settings:
        """None: nothing is evicted from a remote root. `$VLM_CACHE_TIER_LIMIT` is that of the copies."""
        return Settings()

    @property
    def objects(self) -> Objects:
        """The objects themselves, for builds that leave notes for each other there."""
        return self._objects()

    @property
    def transfers(self) -> Transfers:
        """What this process asked of the service."""
        return self._objects().transfers

    def set_limit(
        self, limit_bytes: int | None = None, *, soft_limit_bytes: int | None = None, remember: bool = True
    ) -> None:
        """Refuse a limit; None and 0 or less, which mean none, are fine.

        Raises:
            LocalOnly: a limit above 0.
        """
        if (limit_bytes or 0) > 0 or (soft_limit_bytes or 0) > 0:
            advice = (
                "call prune with down_to_bytes (`vlm-cache prune --down-to`), or give the bucket a lifecycle rule; "
                f"${tier.LIMIT_VARIABLE} limits the copies on this machine"
            )
            raise LocalOnly(self.location, "size limit", advice)

    def _recorded(self, name: str) -> Record | None:
        """The record of a feature, by its last bytes alone, or by all where those do not hold it.

        Raises:
            FileNotFoundError: there is no such object.
            DamagedFeature, StoreReadError.
        """
        return self._told(name, Archive.record)

    def _inexactness(self, name: str) -> InexactFeature | None:
        """As `reader`'s of a file: by its first and last bytes, or by all where those do not hold its layout."""
        try:
            tree = self._tree(name)
        except (FileNotFoundError, DamagedFeature):
            return None
        return None if int8.mark_of(tree) is None else InexactFeature(f"{self.location}/{name}", int8.loss_of(tree))

    def _tree(self, name: str) -> object | None:
        return self._told(name, Archive.tree, is_in_front=True)

    def _told(self, name: str, ask: Callable[[Archive], T], *, is_in_front: bool = False) -> T:
        found = self._objects().tail(name, END_BYTES)
        if found is None:
            raise FileNotFoundError(f"{self.location}/{name}")
        path = f"{self.location}/{name}"
        is_whole = found[1] <= END_BYTES
        first = b"" if is_whole or not is_in_front else self._objects().beginning(name, END_BYTES) or b""
        try:
            with open_content(path, found[0], file_bytes=found[1], first=first) as opened:
                return ask(opened)
        except DamagedFeature:
            if is_whole:
                raise
        whole = self._objects().get(name, lambda content, _: content)
        if whole is None:
            raise FileNotFoundError(path)
        with open_content(path, whole) as opened:
            return ask(opened)

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
            inexact = self._inexactness(name) if wanted.needs_a_look_inside(record) else None
            if inexact is None and wanted.fits(record):
                return True, None
            stale = stale or Stale(name, record or Record(), inexact)
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

    def _asked(self, ask: Callable[[FeatureKey], T], keys: Sequence[FeatureKey]) -> Iterator[T]:
        return self._pool().map(ask, keys)

    def mismatch_of(self, key: FeatureKey, *, recipe: Mapping[str, Any]) -> RecipeMismatch | None:
        """As `Lookup.mismatch_of`."""
        wanted = Wanted.of(recipe)
        is_fitting, stale = self._looked_for(key, wanted)
        return None if is_fitting or stale is None else told_mismatch(self.location, stale, key, wanted)

    def path_of(self, key: FeatureKey, *, recipe: Mapping[str, Any] | None = None) -> Path:
        """Where a copy lies, of what `put` would write now, once it was read."""
        name = naming.relative_path(key)
        fingerprint = Wanted.of(recipe).fingerprint
        if not isinstance(key, VideoKey) or fingerprint is None:
            return self.root / name
        is_owner = self._owners.owner_of(key) in (None, fingerprint)
        return self.root / self._owners.name_for(key, fingerprint, is_owner=is_owner)

    def records_of(self, key: VideoKey) -> Iterator[Record]:
        """As `Lookup.records_of`; other names of a benchmark, which are many, are asked for at once."""
        own, *others = candidates(key, None)
        yield from self._records_at(own)
        for records in self._pool().map(lambda name: list(self._records_at(name)), others):
            yield from records
        known_as = [replace(key, dataset=dataset) for dataset in names_to_search(key.dataset)]
        for names in self._pool().map(self._second_names, known_as):
            for name in names:
                yield from self._records_at(name)

    def _records_at(self, name: str) -> Iterator[Record]:
        """The record of the object of this name, empty if others wrote it; none where no sound one is there."""
        try:
            record = self._recorded(name) or Record()
        except (FileNotFoundError, DamagedFeature):
            return
        yield replace(record, name=name)

    def possible_names(self, key: FeatureKey) -> Iterator[str]:
        """The relative paths under which a key may have features, those of a plain reader first.

        Folders of second recipes are asked of the service when it comes to them.
        """
        yield from candidates(key, None)
        if isinstance(key, VideoKey):
            yield from self._second_names(key)

    def _second_names(self, key: VideoKey) -> list[str]:
        file = naming.relative_path(key).rpartition("/")[2]
        return [f"{folder}/{file}" for folder in sorted(self._objects().folders(f"{key.dataset}@"))]

    def _record(self, name: str) -> Record | None:
        return self._recorded(name)

    def pins(self) -> list[PinInfo]:
        """None: nothing is evicted."""
        return []

    def pinned_bytes(self, *, besides: Asked = ()) -> int:
        """0: nothing is pinned."""
        return 0
