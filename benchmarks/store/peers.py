"""The public caches and formats beside the store, each through one small interface and its own fastest plain use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
import types
import uuid
import warnings
from bisect import bisect_right
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file

from benchmarks.store.features import bytes_of


class Peer:
    """Keeps features by index in `folder`. `finish` ends the writing; reading comes after it."""

    name: ClassVar[str]
    module: ClassVar[str]  # what has to be installed
    can_read: ClassVar[bool] = True  # one feature at random

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._like = like

    @classmethod
    def is_installed(cls) -> bool:
        return importlib.util.find_spec(cls.module) is not None

    def write(self, index: int, feature: torch.Tensor) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is still in memory, and open what reading needs."""

    def read(self, index: int) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        """Give open files back."""


PeerT = TypeVar("PeerT", bound=Peer)


class TorchFiles(Peer):
    """`torch.save` to a unique temporary name, rename; `torch.load` with its defaults."""

    name = "torch.save, rename / torch.load"
    module = "torch"

    def write(self, index: int, feature: torch.Tensor) -> None:
        temp = self._folder / f"{uuid.uuid4().hex}.tmp"
        torch.save(feature.clone(), temp)  # a view would be saved with its whole storage
        os.replace(temp, self.path(index))

    def read(self, index: int) -> torch.Tensor:
        feature: torch.Tensor = torch.load(self.path(index))
        return feature

    def path(self, index: int) -> Path:
        return self._folder / f"{index}.pt"


class SafetensorsFiles(Peer):
    """`save_file` and `load_file` under the final name, one tensor each."""

    name = "safetensors"
    module = "safetensors"

    def write(self, index: int, feature: torch.Tensor) -> None:
        save_file({"feature": feature}, self.path(index))

    def read(self, index: int) -> torch.Tensor:
        feature: torch.Tensor = load_file(self.path(index))["feature"]
        return feature

    def path(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"


class DiskCache(Peer):
    """`diskcache.Cache` with its defaults and room for everything; the value is the feature's bytes."""

    name = "diskcache"
    module = "diskcache"

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        super().__init__(folder, like)
        self._cache: Any = importlib.import_module("diskcache").Cache(str(folder), size_limit=2**50)

    def write(self, index: int, feature: torch.Tensor) -> None:
        self._cache.set(index, bytes(bytes_of(feature)))

    def read(self, index: int) -> torch.Tensor:
        content = bytearray(self._cache.get(index))
        return torch.frombuffer(content, dtype=self._like.dtype).view(self._like.shape)

    def read_into(self, index: int, target: memoryview) -> None:
        """Only for values that it keeps in files of their own: 32 KiB and more."""
        with self._cache.get(index, read=True) as file:
            file.readinto(target)

    def close(self) -> None:
        self._cache.close()


class MosaicShards(Peer):
    """MosaicML streaming's MDS shards, written and read by its own writer and reader, without its remote side."""

    name = "MosaicML streaming (MDS)"
    module = "streaming"

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        super().__init__(folder, like)
        self._mds = _mosaic_format()
        self._writers = 0
        self._writer: Any = None
        self._readers: list[Any] = []
        self._starts: list[int] = []

    @classmethod
    def is_installed(cls) -> bool:
        return super().is_installed() and all(
            importlib.util.find_spec(name) for name in ("brotli", "snappy", "tqdm", "xxhash", "zstd")
        )

    def write(self, index: int, feature: torch.Tensor) -> None:
        if self._writer is None:
            # A writer takes an empty folder, so each batch of writing gets one of its own.
            folder = self._folder / str(self._writers)
            self._writer = self._mds.MDSWriter(out=str(folder), columns={"feature": "ndarray:float16"})
            self._writers += 1
        self._writer.write({"feature": feature.numpy()})

    def finish(self) -> None:
        self._writer.finish()
        self._writer = None
        folder = self._folder / str(self._writers - 1)
        shards = json.loads((folder / "index.json").read_text())["shards"]
        self._readers += [self._mds.MDSReader.from_json(str(folder), None, shard) for shard in shards]
        self._starts = list(accumulate((reader.samples for reader in self._readers), initial=0))

    def read(self, index: int) -> torch.Tensor:
        """Indices count in the order of writing."""
        shard = bisect_right(self._starts, index) - 1
        sample = self._readers[shard].get_item(index - self._starts[shard])
        return torch.from_numpy(sample["feature"])


class WebDatasetShards(Peer):
    """webdataset's tar shards; they are read in their order only."""

    name = "webdataset (tar)"
    module = "webdataset"
    can_read = False

    def __init__(self, folder: Path, like: torch.Tensor) -> None:
        super().__init__(folder, like)
        self._writers = 0
        self._writer: Any = None

    def write(self, index: int, feature: torch.Tensor) -> None:
        if self._writer is None:
            self._writer = importlib.import_module("webdataset").TarWriter(str(self._folder / f"{self._writers}.tar"))
            self._writers += 1
        # As an array: to pickle each tensor would cost ten times as much at either end.
        self._writer.write({"__key__": str(index), "npy": feature.numpy()})

    def finish(self) -> None:
        self._writer.close()
        self._writer = None


PEERS: tuple[type[Peer], ...] = (TorchFiles, SafetensorsFiles, MosaicShards, DiskCache, WebDatasetShards)


def filled_peer(kind: type[PeerT], folder: Path, features: torch.Tensor, *, parts: int = 1) -> PeerT:
    """A peer that holds the features by their index, written in so many parts; its folder is named as its module."""
    peer = kind(folder / kind.module, features[0])
    for start, end in pairwise(len(features) * part // parts for part in range(parts + 1)):
        for index in range(start, end):
            peer.write(index, features[index])
        peer.finish()
    return peer


@functools.cache
def _mosaic_format() -> Any:
    """`streaming.base.format.mds`, without what the package's own `__init__` imports.

    That wants torchvision, transformers and the clients of five clouds, none of which reading a local shard needs.
    """
    spec = importlib.util.find_spec("streaming")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed", name="streaming")
    folder = Path(spec.origin).parent
    for name, path in (("streaming", folder), ("streaming.base", folder / "base")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        package.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        sys.modules.setdefault(name, package)
    # Its arrays are views of bytes; the features are only read here.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return importlib.import_module("streaming.base.format.mds")
