"""The plainest way to train on cached features: a map-style data set over any list of keys."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cache_store import FeatureKey
from consumers.training.feature_reader import FeatureMissing, FeatureReader


class FeatureDataset(Dataset[Any]):
    """Features of `keys` under `root`, a folder or a URL, in their order: item i is the contract's object of `keys[i]`.

    Holds no open file and no CUDA state, so it can be pickled to `spawn` workers and forked alike; each worker opens
    the store for itself at its first item. With `recipe` every feature is checked to have been made with it. A key that
    comes more than once in a batch is read once, and its items share their memory.

    Raises:
        FeatureMissing: from an item whose key is not in the store.
        RecipeMismatch: from an item that was made with another recipe than `recipe`.
    """

    def __init__(self, root: str | Path, keys: Sequence[FeatureKey], *, recipe: dict[str, Any] | None = None) -> None:
        self._keys, self._recipe = list(keys), recipe
        self._reader = FeatureReader(root)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([operator.index(index)])[0]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to download what these items need; for a sampler that knows what comes next."""
        self._reader.prefetch((self._keys[index], self._recipe) for index in indices)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        keys = [self._keys[index] for index in indices]
        features = self._reader.read([(key, self._recipe) for key in keys])
        for key, feature in zip(keys, features, strict=True):
            if feature is None:
                raise FeatureMissing(key, self._reader.root)
        return features
