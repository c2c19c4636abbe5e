"""Read `data.pkl` files of other people's disks without running anything that is in them.

A pickle can name any function and call it. This reader admits numpy arrays, numpy scalars and plain containers, and
refuses every other name. It also reads what joblib writes (plain or zlib-compressed), which keeps an array's bytes in
the stream behind a marker object.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from pipeline.errors import MediaError

# numpy 2 moved `numpy.core` to `numpy._core`; files of both are around.
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]  # numpy itself refuses object arrays here
_SCALAR = np.float64(0).__reduce__()[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which protocol 2 spells bytes; the real one would take any codec."""
    if not isinstance(text, str) or encoding != "latin1":
        raise MediaError(f"encodes with {encoding!r}, which no array does")
    return text.encode("latin1")


def _dtype(*arguments: Any) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`, which would also take objects: their arrays are pickles in a pickle."""
    dtype: np.dtype[Any] = np.dtype(*arguments)
    if dtype.hasobject:
        raise MediaError("an array of objects is not admitted")
    return dtype


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> Any:
    return _RECONSTRUCT(kind, shape, _dtype(dtype))


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
}


def load_plain_pickle(path: Path) -> Any:
    """Return the object of a pickle or joblib file that holds arrays, numbers, strings and plain containers only.

    Raises:
        MediaError: the file is damaged, holds object arrays, or names anything else; nothing of it has been run.
    """
    try:
        with path.open("rb") as file:
            data = _decompressed(file.read())
        try:
            return _PlainReader(io.BytesIO(data)).load()
        except _WrittenByJoblib:
            return _JoblibReader(io.BytesIO(data)).load()
    except MediaError as exc:
        raise MediaError(f"{path.name}: {exc}") from exc
    except Exception as exc:
        raise MediaError(f"{path.name} is no readable pickle: {type(exc).__name__}: {exc}") from exc


def _decompressed(data: bytes) -> bytes:
    if data[:1] == b"\x78":
        return zlib.decompress(data)
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    return data


class _JoblibArray:
    """Stands for joblib's marker object: it says what array lies in the stream behind it."""

    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]
    numpy_array_alignment_bytes: int | None = None

    def read(self, stream: IO[bytes]) -> np.ndarray:
        if self.dtype.hasobject:
            raise MediaError("an array of objects is not admitted")
        if self.numpy_array_alignment_bytes is not None:
            # One byte says how many padding bytes follow it.
            stream.read(stream.read(1)[0])
        count = int(np.prod(self.shape, dtype=np.int64))
        raw = stream.read(count * self.dtype.itemsize)
        # A copy, because an array over the stream's bytes could not be written to.
        flat = np.frombuffer(raw, dtype=self.dtype, count=count).copy()
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


def _admitted(module: str, name: str) -> Any:
    if (module, name) in _ADMITTED:
        return _ADMITTED[module, name]
    # `numpy.dtypes.Float32DType` and its kin, as numpy 2 names its dtypes' classes.
    if module == "numpy.dtypes" and name.endswith("DType") and name != "ObjectDType" and hasattr(np.dtypes, name):
        return getattr(np.dtypes, name)
    raise MediaError(f"names {module}.{name}, and only arrays and plain containers are admitted")


_JOBLIB_MARKER = ("joblib.numpy_pickle", "NumpyArrayWrapper")


class _WrittenByJoblib(Exception):
    """The pickle has joblib's markers, so that arrays lie in the middle of it."""


class _PlainReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _JOBLIB_MARKER:
            raise _WrittenByJoblib
        return _admitted(module, name)


# The unpickler in Python, 20 times as slow, because joblib's arrays must be read out of the stream in the middle of it.
class _JoblibReader(pickle._Unpickler):
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._stream = stream

    def find_class(self, module: str, name: str) -> Any:
        return _JoblibArray if (module, name) == _JOBLIB_MARKER else _admitted(module, name)

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]  # typeshed does not know this method
        if isinstance(self.stack[-1], _JoblibArray):
            self.stack.append(self.stack.pop().read(self._stream))

    dispatch[pickle.BUILD[0]] = load_build
