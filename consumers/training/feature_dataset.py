"""The plainest way to train on cached features: a map-style data set over any list of keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cache_store import FeatureKey, FeatureStore


class FeatureMissing(LookupError):
    """A key of the data set has no feature in the store. Never answered with another sample's feature."""

    def __init__(self, key: FeatureKey, root: str) -> None:
        super().__init__(key, root)
        self.key, self.root = key, root

    def __str__(self) -> str:
        return f"{self.key} has no feature in {self.root}; build it, or take the key out of the list"


class FeatureDataset(Dataset[Any]):
    """Features of `keys`, in their order: item i is the contract's object of `keys[i]`.

    Holds no open file and no CUDA state, so it can be pickled to `spawn` workers and forked alike; each worker opens
    the store for itself at its first item. With `recipe` every feature is checked to have been made with it.

    Raises:
        FeatureMissing: from an item whose key is not in the store.
        RecipeMismatch: from an item that was made with another recipe than `recipe`.
    """

    def __init__(self, root: str | Path, keys: Sequence[FeatureKey], *, recipe: dict[str, Any] | None = None) -> None:
        self._root, self._keys, self._recipe = str(root), list(keys), recipe
        self._store: FeatureStore | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Any:
        if self._store is None:
            self._store = FeatureStore(self._root)
        key = self._keys[index]
        value = self._store.get(key, recipe=self._recipe)
        if value is None:
            raise FeatureMissing(key, self._root)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}
