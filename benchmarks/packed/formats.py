"""The packed formats beside the store's shards, and how each of them reads: at random, in batches, or as a stream."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset, IterableDataset

from benchmarks.store.peers import MosaicShards, Peer, WebDatasetShards

SHUFFLED = 1_000  # samples in WebDataset's shuffle buffer: its own recommendation


class LanceTable(Peer):
    """One Lance data set with a column of fixed-size lists of float16, read by `take`."""

    name = "Lance"
    module = "lance"

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        super().__init__(folder, like)
        self._rows: list[torch.Tensor] = []
        self._table: Any = None

    def write(self, index: int, feature: torch.Tensor) -> None:
        self._rows.append(feature)

    def finish(self) -> None:
        import pyarrow as pa

        values = pa.array(torch.stack(self._rows).view(-1).numpy())
        column = pa.FixedSizeListArray.from_arrays(values, self._like.numel())
        lance = _lance()
        table, path = pa.table({"feature": column}), str(self._folder / "table.lance")
        lance.write_dataset(table, path, mode="append" if Path(path).exists() else "create")
        self._rows = []
        self._table = lance.dataset(path)

    def read(self, index: int) -> torch.Tensor:
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> torch.Tensor:
        """`[len(indices), *shape]`, in the order of the indices."""
        return _features(self._table, indices, self._like.shape)

    def rows(self) -> LanceRows:
        """The same as a data set that other processes can open."""
        return LanceRows(self._folder / "table.lance", self._like.shape, self._table.count_rows())


class LanceRows(Dataset[torch.Tensor]):
    """A Lance data set opened by each process at its first batch; its workers have to be spawned."""

    def __init__(self, path: Path, shape: Sequence[int], count: int) -> None:
        self._path, self._shape, self._count = str(path), tuple(shape), count
        self._table: Any = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        if self._table is None:
            self._table = _lance().dataset(self._path)
        return _features(self._table, indices, self._shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


class WebDatasetStream(IterableDataset[torch.Tensor]):
    """WebDataset's own stream over the shards of a folder, which a number of workers share; features as it meets them.

    With `shuffle` shards and a buffer are shuffled, as its users do; else they come as they were written.
    """

    def __init__(self, folder: Path, *, shuffle: bool) -> None:
        self._shards = sorted(str(path) for path in folder.glob("*.tar"))
        self._shuffle = shuffle

    def __iter__(self) -> Iterator[torch.Tensor]:
        webdataset = importlib.import_module("webdataset")
        shuffled = len(self._shards) if self._shuffle else False
        stream = webdataset.WebDataset(self._shards, shardshuffle=shuffled, empty_check=False)
        if self._shuffle:
            stream = stream.shuffle(SHUFFLED)
        for sample in stream:
            yield torch.from_numpy(numpy.load(io.BytesIO(sample["npy"])))


FORMATS: tuple[type[Peer], ...] = (MosaicShards, LanceTable, WebDatasetShards)


def stacked(batch: torch.Tensor) -> torch.Tensor:
    """The collate function of a data set that gives batches."""
    return batch


def _lance() -> Any:
    # The benchmark's other loaders fork; none of their workers touches Lance.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    return importlib.import_module("lance")


def _features(table: Any, indices: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    column = table.take(list(indices), columns=["feature"])["feature"].combine_chunks()
    with warnings.catch_warnings():
        # Arrow's memory; the features are only read here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(column.flatten().to_numpy()).view(len(indices), *shape)
