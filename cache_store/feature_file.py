"""Reads a feature out of an open file: tensors straight into their memory, in full, by frames, or mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cache_store import pickle_layout
from cache_store.archive import Archive
from cache_store.checksum import crc32
from cache_store.errors import DamagedFeature, StoreReadError
from cache_store.file_systems import is_on_local_disk
from cache_store.pickle_layout import TensorPlace

if TYPE_CHECKING:
    import torch

Check = Literal["once", "always", "size"]
Frames = slice | Sequence[int]

MAIN_FIELD = "vision_features"
_CHUNK_BYTES = 1 << 30  # Linux reads at most 2 GiB per call
_CRC_CHUNK_BYTES = 1 << 20
_ALWAYS_CHECKED_BYTES = 1 << 16
_REMEMBERED_FILES = 1 << 16


@dataclass(frozen=True, eq=False)
class How:
    """How a feature is to be read; see `FeatureStore.get`."""

    out: torch.Tensor | None = None
    frames: Frames | None = None
    check: Check = "once"
    mmap: bool = False


PLAINLY = How()


def load(archive: Archive, how: How = PLAINLY) -> object:
    """The feature in an open file.

    Raises:
        DamagedFeature: content that cannot be trusted or loaded.
        StoreReadError: the disk.
        ValueError, IndexError: `how` does not fit what the file holds.
    """
    tree = archive.tree()
    if tree is None:
        return _loaded_by_torch(archive, how)
    main = _main_place(tree)
    if main is None and (how.out is not None or how.frames is not None):
        raise ValueError(f"{archive.path} holds neither a bare tensor nor {MAIN_FIELD!r}; out= and frames= need one")
    wanted = how if main is not None else PLAINLY
    if wanted.out is not None and main is not None:
        _check_out(wanted.out, _shape_of(main, how.frames), main.dtype)
    if how.frames is None and how.check != "size":
        archive.verify(skip_tensors=True)

    def tensor_at(place: TensorPlace) -> torch.Tensor:
        return _Payload(archive, place).read(how if place is main else How(check=how.check, mmap=how.mmap))

    return pickle_layout.filled(tree, tensor_at)


def _main_place(tree: object) -> TensorPlace | None:
    found = tree.get(MAIN_FIELD) if isinstance(tree, dict) else tree
    return found if isinstance(found, TensorPlace) else None


class _Payload:
    """One tensor's bytes in an open file."""

    def __init__(self, archive: Archive, place: TensorPlace) -> None:
        self._archive = archive
        self._place = place
        self._fd = archive.file.fileno()
        self._offset, size, self._crc = archive.storage(place.storage)
        if size != place.nbytes:
            raise DamagedFeature(archive.path, f"data/{place.storage} holds {size} bytes, not {place.nbytes}")

    def read(self, how: How) -> torch.Tensor:
        import torch

        place = self._place
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
        return torch.from_numpy(flat).view(getattr(torch, place.dtype)).view(place.shape)

    def _read_frames(self, how: How) -> torch.Tensor:
        import torch

        place = self._place
        rows = _rows(how.frames, place.shape)
        row_bytes = place.nbytes // place.shape[0] if place.shape[0] else 0
        out = how.out
        if out is None:
            out = torch.empty((len(rows), *place.shape[1:]), dtype=getattr(torch, place.dtype))
        flat = _flat(out).data
        for target, first, count in _runs(rows):
            part = flat[target * row_bytes : (target + count) * row_bytes]
            self._fill(part, self._offset + first * row_bytes)
        return out

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
                self._fd, self._place.nbytes + before, access=mmap.ACCESS_COPY, offset=self._offset - before
            )
        except (OSError, ValueError) as exc:
            # ValueError: the file is shorter than its own directory says.
            raise DamagedFeature(self._archive.path, f"cannot be mapped ({exc})") from exc
        return np.frombuffer(memory, np.uint8, self._place.nbytes, before)

    def _check(self, content: memoryview, check: Check) -> None:
        if check == "size":
            return
        status = os.fstat(self._fd)
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, self._place.storage)
        is_large = content.nbytes > _ALWAYS_CHECKED_BYTES
        if check == "once" and is_large and identity in _verified:
            return
        crc = 0
        for start in range(0, content.nbytes, _CRC_CHUNK_BYTES):
            crc = crc32(content[start : start + _CRC_CHUNK_BYTES], crc)
        if crc != self._crc:
            raise DamagedFeature(self._archive.path, f"record data/{self._place.storage} fails its checksum")
        if is_large:
            if len(_verified) >= _REMEMBERED_FILES:
                _verified.clear()
            _verified.add(identity)


# Large files whose checksum this process has found right.
_verified: set[tuple[int, int, int, int, str]] = set()


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
    rows = [int(frame) for frame in frames or ()]
    for row in rows:
        if not -length <= row < length:
            raise IndexError(f"frame {row} of a feature of {length} frames")
    return [row % length for row in rows]


def _runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbouring rows together: (position in the result, first row, count)."""
    runs: list[tuple[int, int, int]] = []
    for position, row in enumerate(rows):
        if runs and runs[-1][1] + runs[-1][2] == row:
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
    if how.out is None and how.frames is None:
        return value
    is_dict = isinstance(value, dict)
    main = value.get(MAIN_FIELD) if is_dict else value
    if not isinstance(main, torch.Tensor):
        raise ValueError(f"{archive.path} holds neither a bare tensor nor {MAIN_FIELD!r}; out= and frames= need one")
    chosen = main if how.frames is None else main[list(_rows(how.frames, tuple(main.shape)))]
    if how.out is not None:
        _check_out(how.out, tuple(chosen.shape), str(chosen.dtype).removeprefix("torch."))
        chosen = how.out.copy_(chosen)
    return {**value, MAIN_FIELD: chosen} if is_dict else chosen
