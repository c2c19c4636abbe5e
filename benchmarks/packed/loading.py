"""Rows `load`: samples a second that a DataLoader gives of packed features, by format and by worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.consumers.loading import Loaded, Reads, load_row, store_sets
from benchmarks.packed.formats import FORMATS, LanceTable, WebDatasetStream, stacked
from benchmarks.packed.scale import Scale
from benchmarks.store.features import small_features
from benchmarks.store.keys import step_key
from benchmarks.store.peers import WebDatasetShards, filled_peer
from benchmarks.store.report import Row, not_measured
from cache_store import FeatureStore

BATCHES = "packed, FeatureStore.get_batch for each batch"
_SHARDS = 8  # of WebDataset, which deals them out to its workers


class Batches(Dataset[torch.Tensor]):
    """A data set of 20 lines that reads a whole batch at once; each process opens the store for itself."""

    def __init__(self, root: Path, count: int) -> None:
        self._root, self._keys = root, [step_key(index) for index in range(count)]
        self._store: FeatureStore | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        if self._store is None:
            self._store = FeatureStore(self._root)
        return self._store.get_batch([self._keys[index] for index in indices]).features

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}


def measure(folder: Path, scale: Scale) -> list[Row]:
    """A row for each number of workers."""
    features = small_features(scale.loaded, scale.width)
    with ExitStack() as cleanup:
        sets = store_sets(folder, features)
        sets[BATCHES] = Loaded(Batches(folder / "packed", len(features)), stacked)
        absent = []
        for kind in FORMATS:
            if not kind.is_installed():
                absent.append(not_measured(kind.name, "not installed"))
                continue
            peer = filled_peer(kind, folder, features, parts=_SHARDS if kind is WebDatasetShards else 1)
            cleanup.callback(peer.close)
            if isinstance(peer, LanceTable):
                sets[kind.name] = Loaded(peer.rows(), stacked, "spawn")
            elif isinstance(peer, WebDatasetShards):
                stream = WebDatasetStream(folder / kind.module, shuffle=True)
                sets[kind.name] = Loaded(stream, note="streams; shuffled by shards and in a buffer")
            else:
                sets[kind.name] = Loaded(Reads(peer.read, len(features)))
        return [
            load_row(sets, features, workers, batch=scale.load_batch, rounds=scale.load_rounds, absent=absent)
            for workers in scale.workers
        ]
