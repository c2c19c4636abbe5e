"""Reads features by key and recipe in whatever process it finds itself, each pair of a batch once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cache_store import FeatureKey, FeatureStore, is_root, recipe_fingerprint
from consumers.words import require_one_of

OnStale = Literal["error", "miss", "use"]
Recipe = Mapping[str, Any]


class FeatureMissing(LookupError):
    """A key of the data set has no feature in the store. Never answered with another sample's feature."""

    def __init__(self, key: FeatureKey, root: str) -> None:
        super().__init__(key, root)
        self.key, self.root = key, root

    def __str__(self) -> str:
        return f"{self.key} has no feature in {self.root}; build it, or take the key out of the list"


class FeatureReader:
    """Features under `root`, a folder or a URL. Nothing is opened before the first read, and nothing open is pickled.

    What is behind a URL and not on this machine yet is downloaded for a whole batch at once.
    """

    def __init__(self, root: str | Path, *, on_stale: OnStale = "error") -> None:
        require_one_of(OnStale, on_stale=on_stale)
        self.root, self.on_stale = str(root), on_stale
        self._store: FeatureStore | None = None

    def read(self, wanted: Sequence[tuple[FeatureKey, Recipe | None]]) -> list[Any]:
        """Return the feature of each key, None where the store has none that fits; those of equal pairs are one object.

        Raises:
            RecipeMismatch: a feature was made otherwise than the recipe beside its key, and `on_stale` is "error".
            StoreReadError: the disk or the service.
        """
        store = self._opened()
        if store is None:
            return [None] * len(wanted)
        store.prefetch(wanted)
        distinct = {id(recipe): recipe for _, recipe in wanted if recipe is not None}
        fingerprints = {id_: recipe_fingerprint(recipe) for id_, recipe in distinct.items()}
        pairs = [(key, fingerprints.get(id(recipe))) for key, recipe in wanted]
        features = {
            pair: store.get(pair[0], recipe=recipe, on_stale=self.on_stale)
            for pair, (_, recipe) in dict(zip(pairs, wanted, strict=True)).items()
        }
        return [features[pair] for pair in pairs]

    def prefetch(self, wanted: Iterable[tuple[FeatureKey, Recipe | None]]) -> None:
        """Begin to download what is soon to be read, and return. Of a folder's features none is even looked at."""
        store = self._opened()
        if store is not None:
            store.prefetch(wanted, wait=False)

    def _opened(self) -> FeatureStore | None:
        # Opening a store makes its folder: a mistyped path would become an empty store.
        if self._store is None and is_root(self.root):
            self._store = FeatureStore(self.root)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}
