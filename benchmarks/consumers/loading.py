"""Rows `load`: samples a second that a DataLoader gives of small features, by reader and by worker processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.consumers.scale import Scale
from benchmarks.store.features import bytes_of, small_features
from benchmarks.store.keys import step_key
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.peers import MosaicShards, TorchFiles, filled_peer
from benchmarks.store.raw_files import RawFiles
from benchmarks.store.report import Line, Row, not_measured, rate_lines
from benchmarks.store.small_reads import check_equal, filled_store
from benchmarks.store.timing import seconds_of
from consumers.training import FeatureDataset

LOOSE, PACKED, RAW = "FeatureDataset, one .pt each", "FeatureDataset, packed", "raw open, read, close of one file each"
_CHECKED = 20


class Reads(Dataset[torch.Tensor]):
    """A data set over any reader of one feature at a time."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        feature: torch.Tensor = self._read(index)
        return feature


@dataclass(frozen=True)
class Loaded:
    """A data set of all features, and what its loader needs beside it."""

    data: Dataset[Any]
    collate: Callable[[Any], torch.Tensor] | None = None  # None: torch's own
    start_method: str | None = None  # of its workers; None: the system's default
    note: str = ""


def measure(folder: Path, scale: Scale) -> list[Row]:
    """A row for each number of workers."""
    features = small_features(scale.features, scale.width)
    with ExitStack() as cleanup:
        sets = _data_sets(folder, features, cleanup)
        absent = [] if MosaicShards.name in sets else [not_measured(MosaicShards.name, "not installed")]
        return [
            load_row(sets, features, workers, batch=scale.batch, rounds=scale.rounds, absent=absent)
            for workers in scale.workers
        ]


def load_row(
    sets: Mapping[str, Loaded],
    features: torch.Tensor,
    workers: int,
    *,
    batch: int,
    rounds: int,
    absent: Iterable[Line] = (),
) -> Row:
    """Epochs by so many workers; the set named `RAW` is the base.

    Raises:
        RuntimeError: a loader gives other features than these.
    """
    rates = _rates(sets, features, workers, batch=batch, rounds=rounds)
    notes = {name: one.note for name, one in sets.items()}
    count, width = len(features), features.shape[-1]
    return Row(
        f"load-{workers}",
        f"load {count:,} features [1, 1, {width}] float16, {workers} worker processes",
        "samples/s",
        [*rate_lines(rates, base=RAW, notes=notes), *absent],
        [
            f"Shuffled epochs of batches of {batch}, one torch thread, warm page cache, {rounds} rounds in turns. "
            "Workers live from an epoch before the first that counts."
        ],
    )


def _data_sets(folder: Path, features: torch.Tensor, cleanup: ExitStack) -> dict[str, Loaded]:
    sets = store_sets(folder, features)
    for kind in (TorchFiles, MosaicShards):
        if kind.is_installed():
            peer = filled_peer(kind, folder, features)
            cleanup.callback(peer.close)
            sets[kind.name] = Loaded(Reads(peer.read, len(features)))
    old = OldScripts(folder / TorchFiles.module)  # their files are torch.save's
    sets[f"{old.name} (exists, torch.load)"] = Loaded(Reads(old.read, len(features)))
    return sets


def store_sets(folder: Path, features: torch.Tensor) -> dict[str, Loaded]:
    """The raw files that are the base, and `FeatureDataset` over a loose store and over a packed one, all made here."""
    raw = RawFiles(folder / "raw", features[0])
    for index, feature in enumerate(features):
        raw.write(index, bytes_of(feature))
    keys = [step_key(index) for index in range(len(features))]
    filled_store(folder / "store", features).close()
    with filled_store(folder / "packed", features) as store:
        store.pack()
    return {
        RAW: Loaded(Reads(lambda index: raw.read(index).clone(), len(features))),
        LOOSE: Loaded(FeatureDataset(folder / "store", keys)),
        PACKED: Loaded(FeatureDataset(folder / "packed", keys)),
    }


def _rates(
    sets: Mapping[str, Loaded], features: torch.Tensor, workers: int, *, batch: int, rounds: int
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in sets}
    with ExitStack() as running:
        loaders = {name: running.enter_context(_loader(one, workers, batch)) for name, one in sets.items()}
        for name, loader in loaders.items():
            check_epoch(name, loader, features)  # starts its workers
        for _ in range(rounds):
            for name, loader in loaders.items():
                rates[name].append(len(features) / seconds_of(lambda epoch=loader: sum(1 for _ in epoch)))  # type: ignore[misc]
    return rates


def check_epoch(name: str, loader: DataLoader[Any], features: torch.Tensor) -> None:
    """Refuse to time a loader whose epoch is not every feature once, or whose items are not those of their indices.

    Raises:
        RuntimeError: it is.
    """
    found = Counter(bytes(bytes_of(feature.contiguous())) for batch in loader for feature in batch)
    if found != Counter(bytes(bytes_of(feature)) for feature in features):
        raise RuntimeError(f"{name} does not give every feature once")
    if not isinstance(loader.dataset, IterableDataset):
        for index in range(min(_CHECKED, len(features))):
            check_equal(name, loader.dataset[index], features[index])


@contextmanager
def _loader(one: Loaded, workers: int, batch: int) -> Iterator[DataLoader[Any]]:
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if workers:
        options = {"persistent_workers": True, "multiprocessing_context": one.start_method}
    shuffle = not isinstance(one.data, IterableDataset)  # a stream has an order of its own
    loader = DataLoader(
        one.data, batch_size=batch, shuffle=shuffle, collate_fn=one.collate, num_workers=workers, **options
    )
    try:
        yield loader
    finally:
        loader._iterator = None  # ends its workers
