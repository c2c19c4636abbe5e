"""The only place that knows how a feature becomes a `.pt` file that plain `torch.load` understands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

from cache_store.archive import Archive, Record, append_record, open_archive
from cache_store.errors import DamagedFeature

# torch.save names the archive's folder after the file's stem when it is given a path: a temporary name would
# change the bytes of every run. Through a buffer it is always this.
_ROOT = "archive"
_ALLOWED = "a feature holds tensors, dicts with str or int keys, lists, tuples, str, int, float, bool and None"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a feature: `path` is its place in the object, as in `['vision_features']`."""

    path: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FeatureInfo:
    """What a `.pt` file holds, inside or outside a store."""

    path: str
    bytes: int  # st_size of the file
    tensors: list[TensorInfo]
    record: Record | None  # None for files that others wrote

    def to_json(self) -> dict[str, Any]:
        record = self.record or Record()
        return {
            "path": self.path,
            "bytes": self.bytes,
            "tensors": [{"path": t.path, "dtype": t.dtype, "shape": list(t.shape)} for t in self.tensors],
            "key": record.key,
            "recipe": record.recipe,
            "recipe_fingerprint": record.recipe_fingerprint,
            "provenance": record.provenance,
        }


def encode(value: object, *, record: Record) -> memoryview:
    """The file's bytes; `torch.load(path, weights_only=True)` on them returns the value's structure exactly.

    Tensors come back detached, contiguous and on the CPU, with their dtype; a view is cut out of its storage.
    Equal values and records give equal bytes, whatever their strides, aliasing or history.

    Raises:
        TypeError: the value holds something that a feature file cannot carry.
    """
    buffer = BytesIO()
    torch.save(_Preparation().prepared(value, "value"), buffer)
    append_record(buffer, _ROOT, record)
    return buffer.getbuffer()


class _Preparation:
    """Rebuilds a value so that neither its memory layout nor shared objects show in the bytes."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def prepared(self, value: object, path: str) -> object:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        # Exact types: a subclass would come back as something else, or not at all under weights_only.
        kind: type = type(value)
        if isinstance(value, dict) and kind is dict:
            return self._dict(value, path)
        if isinstance(value, list) and kind is list:
            return [self.prepared(inner, f"{path}[{i}]") for i, inner in enumerate(value)]
        if isinstance(value, tuple) and kind is tuple:
            return tuple(self.prepared(inner, f"{path}[{i}]") for i, inner in enumerate(value))
        if isinstance(value, str) and kind is str:
            # Pickle writes the same str object once and equal ones twice; interned, equal is the same.
            return sys.intern(value)
        if value is None or kind in (int, float, bool):
            return value
        raise TypeError(f"{path} is a {kind.__module__}.{kind.__qualname__}; {_ALLOWED}")

    def _dict(self, value: dict[object, object], path: str) -> dict[object, object]:
        for key in value:
            if type(key) is not str and type(key) is not int:
                raise TypeError(f"{path} has the key {key!r} of type {type(key).__name__}; {_ALLOWED}")
        return {
            sys.intern(key) if isinstance(key, str) else key: self.prepared(inner, f"{path}[{key!r}]")
            for key, inner in value.items()
        }

    def _tensor(self, tensor: torch.Tensor, path: str) -> torch.Tensor:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"{path} is a {type(tensor).__name__}; call .as_subclass(torch.Tensor) first")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{path} is a sparse, quantized or meta tensor; store a dense one")
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # Through one dimension, because a dimension of size 1 may carry any stride and strides are written.
        plain = plain.view(-1).view(plain.shape)
        storage = plain.untyped_storage()
        is_view = storage.nbytes() != plain.numel() * plain.element_size()
        if is_view or storage.data_ptr() in self._storages:
            plain = plain.clone()  # a view would drag its whole storage into the file
        self._storages.add(plain.untyped_storage().data_ptr())
        return plain


def load(archive: Archive) -> object:
    """Verify every checksum of an open archive, then unpickle it with `weights_only=True`.

    Raises:
        DamagedFeature: content that cannot be trusted or loaded.
        StoreReadError: the disk.
    """
    archive.verify()
    archive.file.seek(0)
    try:
        return torch.load(archive.file, map_location="cpu", weights_only=True)
    except Exception as exc:
        reason = str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
        raise DamagedFeature(archive.path, f"torch.load refuses it ({reason})") from exc


def decode(path: str | os.PathLike[str]) -> object:
    """The feature in a `.pt` file, every checksum verified.

    Raises:
        FileNotFoundError, DamagedFeature, StoreReadError: as `archive.open_archive` and `load`.
    """
    with open_archive(path) as archive:
        return load(archive)


def describe(path: str | os.PathLike[str]) -> FeatureInfo:
    """What a `.pt` file holds, wherever it lies; verifies it on the way.

    Raises:
        FileNotFoundError, DamagedFeature, StoreReadError: as `decode`.
    """
    with open_archive(path) as archive:
        value = load(archive)
        size = os.fstat(archive.file.fileno()).st_size
        return FeatureInfo(archive.path, size, list(_tensors(value, "")), archive.record())


def _tensors(value: object, path: str) -> list[TensorInfo]:
    if isinstance(value, torch.Tensor):
        return [TensorInfo(path, str(value.dtype).removeprefix("torch."), tuple(value.shape))]
    found: list[TensorInfo] = []
    if isinstance(value, Mapping):
        for key, inner in value.items():
            found += _tensors(inner, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            found += _tensors(inner, f"{path}[{position}]")
    return found


def feature_dtype(value: object) -> str | None:
    """The dtype of a feature's first tensor as in `float16`; None when it holds none."""
    tensors = _tensors(value, "")
    return tensors[0].dtype if tensors else None
