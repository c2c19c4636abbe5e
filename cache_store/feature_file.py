"""Reads a feature out of an open file: tensors straight into their memory, in full, by frames, or mapped."""

from __future__ import annotations

import contextlib
import mmap
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cache_store import int8, pickle_layout
from cache_store.archive import Archive
from cache_store.checksum import crc32
from cache_store.errors import DamagedFeature, InexactFeature, StoreReadError
from cache_store.file_systems import is_on_local_disk
from cache_store.pickle_layout import MAIN_FIELD, TensorPlace

if TYPE_CHECKING:
    import torch

Check = Literal["once", "always", "size"]
Frames = slice | Sequence[int]

_CHUNK_BYTES = 1 << 30  # Linux reads at most 2 GiB per call
_CRC_CHUNK_BYTES = 1 << 20
_INT8_PIECE_BYTES = 1 << 20  # read, checked and dequantised while the processor's cache holds it
_ALWAYS_CHECKED_BYTES = 1 << 16
_REMEMBERED_FILES = 1 << 16


@dataclass(frozen=True, eq=False)
class How:
    """How a feature is to be read; see `FeatureStore.get`."""

    out: torch.Tensor | None = None
    frames: Frames | None = None
    check: Check = "once"
    mmap: bool = False
    dtype: str | None = None  # as in torch.<dtype>
    exact: bool = False
    as_stored: bool = False  # int8 with its scales, as plain `torch.load` gives it


PLAINLY = How()
AS_STORED = How(as_stored=True)


def load(archive: Archive, how: How = PLAINLY) -> object:
    """The feature in an open file.

    Raises:
        DamagedFeature: content that cannot be trusted or loaded.
        InexactFeature: it is not exact, and `how` asks for that.
        StoreReadError: the disk.
        ValueError, IndexError: `how` does not fit what the file holds.
    """
    import torch

    tree = archive.tree()
    if tree is None:
        return _loaded_by_torch(archive, how)
    _check_exactness(archive.path, tree, how)
    main = _main_place(tree)
    if main is None and (how.out is not None or how.frames is not None):
        raise ValueError(f"{archive.path} holds neither a bare tensor nor {MAIN_FIELD!r}; out= and frames= need one")
    is_int8 = int8.is_quantised(tree) and not how.as_stored
    dtype = _int8_dtype(archive.path, tree, how) if is_int8 else None
    if main is not None and not is_int8:
        _check_dtype(archive.path, main.dtype, how)
    if how.out is not None and main is not None:
        _check_out(how.out, _shape_of(main, how.frames), dtype or main.dtype)
    if how.frames is None and how.check != "size":
        archive.verify(skip_tensors=True)
    scales = tree.get(int8.SCALE_FIELD) if dtype is not None and isinstance(tree, dict) else None

    def tensor_at(place: TensorPlace) -> torch.Tensor | None:
        if place is scales:
            return None
        payload = _Payload(archive, place)
        if place is not main:
            return payload.read(How(check=how.check, mmap=how.mmap))
        if dtype is None or scales is None:
            return payload.read(how)
        return _dequantised(payload, _Payload(archive, scales), getattr(torch, dtype), how)

    value = pickle_layout.filled(tree, tensor_at)
    if scales is not None and isinstance(value, dict):
        del value[int8.SCALE_FIELD]
    return value


def _check_exactness(path: str, value: object, how: How) -> None:
    """Refuse a feature, or the layout of one, that went through int8, where an exact one is asked for."""
    if how.exact and int8.mark_of(value) is not None:
        raise InexactFeature(path, int8.loss_of(value))


def _int8_dtype(path: str, value: object, how: How) -> str:
    """What an int8 feature is to become: as the caller says, else as his buffer is, else as the tower gave it."""
    recorded = str((int8.mark_of(value) or {}).get("dtype"))
    if not int8.has_scales(value) or recorded not in int8.DTYPES:
        raise DamagedFeature(path, "its int8 values have no scales that fit, or no dtype")
    if how.dtype not in (None, *int8.DTYPES):
        raise ValueError(f"dtype is {how.dtype}; {path} is kept as int8 and can be read as {', '.join(int8.DTYPES)}")
    buffer = recorded if how.out is None else str(how.out.dtype).removeprefix("torch.")
    return how.dtype or (buffer if buffer in int8.DTYPES else recorded)


def _check_dtype(path: str, dtype: str, how: How) -> None:
    if how.dtype is not None and how.dtype != dtype:
        raise ValueError(f"{path} is exact {dtype}, and dtype={how.dtype} would cast it; leave dtype out")


def _main_place(tree: object) -> TensorPlace | None:
    found = tree.get(MAIN_FIELD) if isinstance(tree, dict) else tree
    return found if isinstance(found, TensorPlace) else None


class _Payload:
    """One tensor's bytes in an open file."""

    def __init__(self, archive: Archive, place: TensorPlace) -> None:
        self._archive = archive
        self.place = place
        self._fd = archive.file.fileno()
        self._offset, size, self._crc = archive.storage(place.storage)
        if size != place.nbytes:
            raise DamagedFeature(archive.path, f"data/{place.storage} holds {size} bytes, not {place.nbytes}")

    def read(self, how: How) -> torch.Tensor:
        import torch

        place = self.place
        if how.frames is not None:
            return self._read_frames(how)
        if how.mmap and place.nbytes and how.out is None and is_on_local_disk(self._fd):
            flat = self._mapped()
        else:
            flat = _flat(how.out) if how.out is not None else np.empty(place.nbytes, np.uint8)
            self._fill(flat.data, self._offset)
        self._check(flat.data, how.check)
        if how.out is not None:
            return how.out
        dtype = getattr(torch, place.dtype)
        if not place.nbytes:
            return torch.empty(place.shape, dtype=dtype)  # an empty array's stride, 0, does not let torch view it
        return torch.from_numpy(flat).view(dtype).view(place.shape)

    def _read_frames(self, how: How) -> torch.Tensor:
        import torch

        place = self.place
        rows = _rows(how.frames, place.shape)
        row_bytes = place.nbytes // place.shape[0] if place.shape[0] else 0
        out = how.out
        if out is None:
            out = torch.empty((len(rows), *place.shape[1:]), dtype=getattr(torch, place.dtype))
        flat = _flat(out).data
        for target, first, count in _runs(rows):
            self.fill_rows(first, flat[target * row_bytes : (target + count) * row_bytes])
        return out

    def fill_rows(self, first: int, target: memoryview) -> None:
        """Read rows one after another until `target` is full."""
        if target.nbytes:
            self._fill(target, self._offset + first * (self.place.nbytes // self.place.shape[0]))

    def _fill(self, target: memoryview, offset: int) -> None:
        position = 0
        while position < target.nbytes:
            try:
                count = os.preadv(self._fd, [target[position : position + _CHUNK_BYTES]], offset + position)
            except OSError as exc:
                raise StoreReadError(self._archive.path, exc) from exc
            if count == 0:
                raise DamagedFeature(self._archive.path, f"ends {target.nbytes - position} bytes early")
            position += count

    def _mapped(self) -> np.ndarray[Any, Any]:
        before = self._offset % mmap.ALLOCATIONGRANULARITY
        try:
            memory = mmap.mmap(
                self._fd, self.place.nbytes + before, access=mmap.ACCESS_COPY, offset=self._offset - before
            )
        except (OSError, ValueError) as exc:
            # ValueError: the file is shorter than its own directory says.
            raise DamagedFeature(self._archive.path, f"cannot be mapped ({exc})") from exc
        return np.frombuffer(memory, np.uint8, self.place.nbytes, before)

    def _check(self, content: memoryview, check: Check) -> None:
        if self.is_to_be_checked(check):
            crc = 0
            for start in range(0, content.nbytes, _CRC_CHUNK_BYTES):
                crc = crc32(content[start : start + _CRC_CHUNK_BYTES], crc)
            self.confirm(crc)

    def is_to_be_checked(self, check: Check) -> bool:
        """Whether the whole tensor's CRC-32 has to be computed and given to `confirm`."""
        return check == "always" or (check == "once" and self._identity() not in _verified)

    def confirm(self, crc: int) -> None:
        """Note that the tensor's bytes are sound.

        Raises:
            DamagedFeature: they are not.
        """
        if crc != self._crc:
            raise DamagedFeature(self._archive.path, f"record data/{self.place.storage} fails its checksum")
        if self.place.nbytes > _ALWAYS_CHECKED_BYTES:
            if len(_verified) >= _REMEMBERED_FILES:
                _verified.clear()
            _verified.add(self._identity())

    def _identity(self) -> tuple[int, int, int, int, str]:
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, self.place.storage


# Large files whose checksum this process has found right.
_verified: set[tuple[int, int, int, int, str]] = set()


def _dequantised(values: _Payload, scales: _Payload, dtype: torch.dtype, how: How) -> torch.Tensor:
    """A feature's int8 values times their scales, [frames, ..., width] in `dtype`; in pieces of a frame or a megabyte.

    After an error `how.out` is undefined.
    """
    import torch

    shape = values.place.shape
    rows = range(shape[0]) if how.frames is None else _rows(how.frames, shape)
    out = torch.empty((len(rows), *shape[1:]), dtype=dtype) if how.out is None else how.out
    given = out.detach()
    factors = scales.read(How(frames=how.frames, check=how.check))
    at_once = max(1, _INT8_PIECE_BYTES // max(1, values.place.nbytes // max(1, shape[0])))
    piece = torch.empty((min(at_once, len(rows)), *shape[1:]), dtype=torch.int8)
    is_checked = how.frames is None and values.is_to_be_checked(how.check)
    crc = 0
    for target, first, count in _runs(rows, at_most=at_once):
        part = piece[:count]
        content = _flat(part).data
        values.fill_rows(first, content)
        crc = crc32(content, crc) if is_checked else 0
        int8.dequantise(part, factors[target : target + count], given[target : target + count])
    if is_checked:
        values.confirm(crc)
    return out


def _flat(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)


def _check_out(out: torch.Tensor, shape: tuple[int, ...], dtype: str) -> None:
    found = str(out.dtype).removeprefix("torch.")
    if out.device.type != "cpu" or not out.is_contiguous():
        raise ValueError(
            f"out is {'not contiguous' if out.device.type == 'cpu' else f'on {out.device}'}; give a CPU tensor"
        )
    if found != dtype or tuple(out.shape) != shape:
        raise ValueError(f"out is {found} {list(out.shape)}, the feature is {dtype} {list(shape)}")


def _shape_of(place: TensorPlace, frames: Frames | None) -> tuple[int, ...]:
    return place.shape if frames is None else (len(_rows(frames, place.shape)), *place.shape[1:])


def _rows(frames: Frames | None, shape: tuple[int, ...]) -> Sequence[int]:
    if not shape:
        raise ValueError("frames= needs a tensor with a first dimension")
    length = shape[0]
    if isinstance(frames, slice):
        return range(*frames.indices(length))
    given = getattr(frames, "tolist", lambda: frames)()
    if not isinstance(given, Sequence):
        raise ValueError(f"frames is {frames!r}; give a slice or a sequence of whole numbers")
    rows = given if set(map(type, given)) == {int} else list(map(_whole_number, given))
    for row in rows:
        if not -length <= row < length:
            raise IndexError(f"frame {row} of a feature of {length} frames")
    return [row % length for row in rows]


def _whole_number(frame: Any) -> int:
    # A truth value is a whole number to Python: a mask would be read as frames 0 and 1.
    if not str(getattr(frame, "dtype", type(frame).__name__)).endswith("bool"):
        with contextlib.suppress(TypeError):
            return operator.index(frame)
    raise ValueError(f"frames has {frame!r}; give a slice or a sequence of whole numbers")


def _runs(rows: Sequence[int], *, at_most: int | None = None) -> list[tuple[int, int, int]]:
    """Neighbouring rows together, `at_most` so many: (position in the result, first row, count)."""
    runs: list[tuple[int, int, int]] = []
    for position, row in enumerate(rows):
        if runs and runs[-1][1] + runs[-1][2] == row and runs[-1][2] != at_most:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((position, row, 1))
    return runs


def _loaded_by_torch(archive: Archive, how: How) -> object:
    """A layout that only torch understands; every checksum is verified first, and nothing but weights is unpickled."""
    import torch

    archive.verify()
    archive.file.seek(0)
    try:
        value = torch.load(archive.file, map_location="cpu", weights_only=True)
    except Exception as exc:
        reason = str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
        raise DamagedFeature(archive.path, f"torch.load refuses it ({reason})") from exc
    _check_exactness(archive.path, value, how)
    is_dict = isinstance(value, dict)
    if int8.is_quantised(value) and not how.as_stored:
        dtype = getattr(torch, _int8_dtype(archive.path, value, how))
        scales, values = value.pop(int8.SCALE_FIELD), value[MAIN_FIELD]
        value[MAIN_FIELD] = torch.empty(values.shape, dtype=dtype)
        int8.dequantise(values, scales, value[MAIN_FIELD])
    main = value.get(MAIN_FIELD) if is_dict else value
    if isinstance(main, torch.Tensor):
        _check_dtype(archive.path, str(main.dtype).removeprefix("torch."), how)
    if how.out is None and how.frames is None:
        return value
    if not isinstance(main, torch.Tensor):
        raise ValueError(f"{archive.path} holds neither a bare tensor nor {MAIN_FIELD!r}; out= and frames= need one")
    chosen = main if how.frames is None else main[list(_rows(how.frames, tuple(main.shape)))]
    if how.out is not None:
        _check_out(how.out, tuple(chosen.shape), str(chosen.dtype).removeprefix("torch."))
        chosen = how.out.copy_(chosen)
    return {**value, MAIN_FIELD: chosen} if is_dict else chosen
