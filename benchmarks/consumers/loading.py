"""Rows `load`: samples a second that a DataLoader gives of small features, by reader and by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.consumers.scale import Scale
from benchmarks.store.features import bytes_of, small_features
from benchmarks.store.keys import step_key
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.peers import MosaicShards, Peer, TorchFiles
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Row, not_measured, rate_lines
from benchmarks.store.small_reads import check_equal, filled_store
from benchmarks.store.timing import seconds_of
from consumers.training import FeatureDataset

LOOSE, PACKED, RAW = "FeatureDataset, one .pt each", "FeatureDataset, packed", "raw open, read, close of one file each"


class Reads(Dataset[torch.Tensor]):
    """A data set over any reader of one feature at a time."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        feature: torch.Tensor = self._read(index)
        return feature


def measure(folder: Path, scale: Scale) -> list[Row]:
    """A row for each number of workers."""
    features = small_features(scale.features, scale.width)
    with ExitStack() as cleanup:
        sets = _data_sets(folder, features, cleanup)
        absent = [] if MosaicShards.name in sets else [not_measured(MosaicShards.name, "not installed")]
        rows = []
        for workers in scale.workers:
            rates = _rates(sets, features, workers, scale)
            rows.append(
                Row(
                    f"load-{workers}",
                    f"load {scale.features:,} features [1, 1, {scale.width}] float16, {workers} worker processes",
                    "samples/s",
                    [*rate_lines(rates, base=RAW), *absent],
                    [
                        f"Shuffled epochs of batches of {scale.batch}, one torch thread, warm page cache, "
                        f"{scale.rounds} rounds in turns. Workers live from an epoch before the first that counts."
                    ],
                )
            )
    return rows


def _data_sets(folder: Path, features: torch.Tensor, cleanup: ExitStack) -> dict[str, Dataset[Any]]:
    raw = RawFiles(folder / "raw", features[0])
    for index, feature in enumerate(features):
        raw.write(index, bytes_of(feature))
    keys = [step_key(index) for index in range(len(features))]
    filled_store(folder / "store", features).close()
    with filled_store(folder / "packed", features) as store:
        store.pack()
    peers = [_filled(kind, folder, features, cleanup) for kind in (TorchFiles, MosaicShards) if kind.is_installed()]
    old = OldScripts(folder / TorchFiles.module)  # their files are torch.save's
    sets: dict[str, Dataset[Any]] = {
        RAW: Reads(lambda index: raw.read(index).clone(), len(features)),
        LOOSE: FeatureDataset(folder / "store", keys),
        PACKED: FeatureDataset(folder / "packed", keys),
        f"{old.name} (exists, torch.load)": Reads(old.read, len(features)),
    }
    return sets | {peer.name: Reads(peer.read, len(features)) for peer in peers}


def _filled(kind: type[Peer], folder: Path, features: torch.Tensor, cleanup: ExitStack) -> Peer:
    peer = kind(folder / kind.module, features[0])
    cleanup.callback(peer.close)
    for index, feature in enumerate(features):
        peer.write(index, feature)
    peer.finish()
    return peer


def _rates(sets: dict[str, Dataset[Any]], features: torch.Tensor, workers: int, scale: Scale) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in sets}
    with ExitStack() as running:
        loaders = {name: running.enter_context(_loader(sets[name], workers, scale)) for name in sets}
        for name, loader in loaders.items():
            for index in range(min(20, len(features))):
                check_equal(name, sets[name][index], features[index])
            sum(1 for _ in loader)  # starts its workers
        for _ in range(scale.rounds):
            for name, loader in loaders.items():
                rates[name].append(scale.features / seconds_of(lambda epoch=loader: sum(1 for _ in epoch)))  # type: ignore[misc]
    return rates


@contextmanager
def _loader(data: Dataset[Any], workers: int, scale: Scale) -> Iterator[DataLoader[Any]]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    loader = DataLoader(data, batch_size=scale.batch, shuffle=True, num_workers=workers, **options)
    try:
        yield loader
    finally:
        loader._iterator = None  # ends its workers
