"""The only place that knows how a feature becomes a `.pt` file that plain `torch.load` understands."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_store import int8, pickle_layout, zip_layout
from cache_store.archive import RECORD_NAME, Archive, Record, append_record, open_archive
from cache_store.feature_file import AS_STORED, load
from cache_store.keys import VideoKey
from cache_store.pickle_layout import TensorPlace

if TYPE_CHECKING:
    import torch

_ALLOWED = "a feature holds tensors, dicts with str or int keys, lists, tuples, str, int, float, bool and None"

logger = logging.getLogger("cache_store")


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
    loss: int8.Loss | None = None  # of a feature that is kept as int8, what that cost it

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
            "int8_loss": None if self.loss is None else self.loss._asdict(),
        }


def encode(value: object, *, record: Record) -> list[bytes | memoryview]:
    """The file's bytes as buffers; `torch.load(path, weights_only=True)` on them returns the value's structure exactly.

    Tensors come back detached, contiguous and on the CPU, with their dtype; of a view only its own elements are stored.
    Equal values and records give equal bytes, whatever their strides, aliasing or history. Large tensors are not
    copied: the buffers share their memory, which must not change before they are written.

    Raises:
        TypeError: the value holds something that a feature file cannot carry.
    """
    preparation = _Preparation()
    tree = preparation.prepared(value, "value")
    payloads = [_bytes_of(tensor) for tensor in preparation.tensors]
    total_bytes = sum(payload.nbytes for payload in payloads)
    is_plain = all(_dtype_name(tensor.dtype) in pickle_layout.STORAGE_OF for tensor in preparation.tensors)
    if is_plain and total_bytes < zip_layout.LARGEST_BYTES and _torch_reads_our_layout():
        data_pkl = _emitted(tree) if isinstance(tree, TensorPlace) else pickle_layout.emit(tree)
        return zip_layout.assemble(data_pkl, payloads, RECORD_NAME, record.to_json())
    buffer = BytesIO()
    import torch

    torch.save(pickle_layout.filled(tree, lambda place: preparation.tensors[int(place.storage)].clone()), buffer)
    append_record(buffer, zip_layout.ROOT, record)
    return [buffer.getbuffer()]


def can_encode_many(features: torch.Tensor) -> bool:
    """Whether `encode_many` can: torch itself has to write some dtypes, and what has no element is not worth it."""
    import torch

    is_plain = features.layout is torch.strided and _dtype_name(features.dtype) in pickle_layout.STORAGE_OF
    return is_plain and features.numel() > 0 and _torch_reads_our_layout()


class Many:
    """As `encode` of each row of one tensor `[len(records), *shape]`, its record given as JSON, into ready memory.

    Only where `can_encode_many`.

    Raises:
        TypeError: as `encode`.
    """

    def __init__(self, features: torch.Tensor, records: Sequence[bytes]) -> None:
        preparation = _Preparation()
        preparation.prepared(features, "features")
        (plain,) = preparation.tensors
        data_pkl = _emitted(TensorPlace("0", _dtype_name(plain.dtype), tuple(plain.shape[1:])))
        self._payloads = np.frombuffer(_bytes_of(plain), np.uint8).reshape(len(records), -1)
        self._records = records
        row_bytes = self._payloads.shape[1]
        self._templates = [
            zip_layout.template(data_pkl, row_bytes, RECORD_NAME, length) for length in map(len, records)
        ]
        self.sizes = [len(template.content) for template in self._templates]

    def write(self, rows: Sequence[int], files: np.ndarray[Any, Any]) -> None:
        """Write the files of these rows, all of one size, into the rows of `files`, `[len(rows), size]` of uint8."""
        is_run = rows[-1] - rows[0] == len(rows) - 1
        payloads = self._payloads[rows[0] : rows[-1] + 1] if is_run else self._payloads[rows]
        self._templates[rows[0]].fill(files, payloads, [self._records[row] for row in rows])


# A bare tensor's pickle depends on its dtype and shape only.
_emitted = functools.lru_cache(maxsize=256)(pickle_layout.emit)


@functools.cache
def _torch_reads_our_layout() -> bool:
    """Whether the running torch returns what we write; asked once for each process."""
    import torch

    sample: dict[str, Any] = {"a": torch.arange(6.0).half().reshape(1, 2, 3), "b": [1, -2.5, "x", None, (True,)]}
    preparation = _Preparation()
    tree = preparation.prepared(sample, "sample")
    payloads = [_bytes_of(tensor) for tensor in preparation.tensors]
    content = b"".join(zip_layout.assemble(pickle_layout.emit(tree), payloads, RECORD_NAME, b"{}"))
    try:
        found = torch.load(BytesIO(content), weights_only=True)
        is_equal = torch.equal(found["a"], sample["a"]) and found["b"] == sample["b"]
    except Exception as exc:  # noqa: BLE001 - whatever a future torch raises means that it does not read it
        logger.info("torch %s does not read our layout: %s", torch.__version__, exc)
        is_equal = False
    if not is_equal:
        logger.warning(
            "torch %s reads another file layout than ours; torch.save writes the features", torch.__version__
        )
    return is_equal


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a dense CPU tensor as bytes, shared."""
    import torch

    if tensor.numel() == 0:
        return memoryview(b"")
    try:
        content = tensor.numpy()
    except TypeError:  # a dtype that numpy does not have, as bfloat16
        content = tensor.reshape(-1).view(torch.uint8).numpy()
    return content.reshape(-1).view("u1").data


class _Preparation:
    """Takes a value apart into containers with places, and dense tensors of the CPU in their order."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def prepared(self, value: object, path: str) -> object:
        import torch

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

    def _tensor(self, tensor: torch.Tensor, path: str) -> TensorPlace:
        import torch

        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"{path} is a {type(tensor).__name__}; call .as_subclass(torch.Tensor) first")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{path} is a sparse, quantized or meta tensor; store a dense one")
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self.tensors.append(plain)
        return TensorPlace(str(len(self.tensors) - 1), _dtype_name(plain.dtype), tuple(plain.shape))


def decode(path: str | os.PathLike[str]) -> object:
    """The feature in a `.pt` file as it is stored, int8 with its scales too; every checksum is verified.

    Raises:
        FileNotFoundError, DamagedFeature, StoreReadError: as `archive.open_archive` and `feature_file.load`.
    """
    with open_archive(path) as archive:
        return load(archive, AS_STORED)


def describe(path: str | os.PathLike[str]) -> FeatureInfo:
    """What a `.pt` file holds, wherever it lies; verifies it on the way, and needs torch for foreign layouts only.

    Raises:
        FileNotFoundError, DamagedFeature, StoreReadError: as `decode`.
    """
    with open_archive(path) as archive:
        return described(archive)


def described(archive: Archive) -> FeatureInfo:
    """As `describe`, of an open file."""
    archive.verify()
    tree = archive.tree()
    found = load(archive, AS_STORED) if tree is None else tree
    size = os.fstat(archive.file.fileno()).st_size
    return FeatureInfo(archive.path, size, list(_tensors(found, "")), archive.record(), int8.loss_of(found))


def _tensors(value: object, path: str) -> Iterable[TensorInfo]:
    parts: Sequence[tuple[object, object]] = ()
    if isinstance(value, TensorPlace):
        yield TensorInfo(path, value.dtype, value.shape)
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        yield TensorInfo(path, str(value.dtype).removeprefix("torch."), tuple(value.shape))
    for key, inner in parts:
        yield from _tensors(inner, f"{path}[{key!r}]")


def video_value(key: VideoKey, features: torch.Tensor, *, video_path: str) -> dict[str, Any]:
    """The dict of the LongVA-style vision cache: `features` [frames, tokens, width] and what they are of.

    `video_path` is POSIX, relative to the data folder.
    """
    return {
        "vision_features": features,
        "video_id": key.video_id,
        "video_path": video_path,
        "nframe": key.nframe,
        "dataset": key.dataset,
        "model_signature": key.model_signature,
        "dtype": _dtype_name(features.dtype),
        "shape": list(features.shape),
    }


def feature_dtype(value: object) -> str | None:
    """The dtype of a feature's first tensor as in `float16`; None when it holds none."""
    return next((tensor.dtype for tensor in _tensors(value, "")), None)


def same_feature(one: object, other: object) -> bool:
    """Whether two features are equal in structure, dtypes, shapes and bits."""
    left, right = _Preparation(), _Preparation()
    try:
        trees = [preparation.prepared(value, "value") for preparation, value in ((left, one), (right, other))]
    except TypeError:
        return False
    if repr(trees[0]) != repr(trees[1]):
        return False
    return all(_bytes_of(a) == _bytes_of(b) for a, b in zip(left.tensors, right.tensors, strict=True))
