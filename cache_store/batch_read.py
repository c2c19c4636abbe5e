"""Reads many features of one shape into one tensor: packed ones straight from the map, all others one by one.

What a row holds is found out once for each process, with its checksum; then only names and places are looked up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_store import naming, shards
from cache_store.errors import DamagedFeature
from cache_store.fast_read import FastReader
from cache_store.keys import FeatureKey, StepKey
from cache_store.pickle_layout import MAIN_FIELD
from cache_store.shard_file import Shard
from cache_store.shards import View
from cache_store.usage import Usage

if TYPE_CHECKING:
    import torch

_SETTLED_AFTER_NS = 50_000_000
_ASKED_ONE_BY_ONE = 8
_UNKNOWN, _OTHER = -1, -2  # not looked at yet; to be read with care


class Batch(NamedTuple):
    """Features of several keys: row i of `features` is that of key i, undefined for the positions in `missing`."""

    features: torch.Tensor
    missing: list[int]

    def with_rows(self, values: Mapping[int, object]) -> Batch:
        """The batch with the features that were found for some of the missing positions.

        Raises:
            ValueError: they do not fit together, or are no tensors.
        """
        out = self.features
        for position, value in values.items():
            tensor = _main(value)
            if tensor is None:
                raise ValueError(f"position {position} has no {MAIN_FIELD!r}")
            if len(self.missing) == len(out) and out.shape[1:] != tensor.shape:
                out = _empty(len(out), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            if out.dtype != tensor.dtype or out.shape[1:] != tensor.shape:
                raise ValueError(f"position {position} is {tensor.dtype} {list(tensor.shape)}, the batch {_shown(out)}")
            out[position].copy_(tensor)
        return Batch(out, [position for position in self.missing if position not in values])


class _Kind(NamedTuple):
    """What rows have in common."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    fingerprint: str | None  # of the recipe, 64 hex digits


class BatchReader:
    """Reads batches from one store. Safe for threads: a lost race costs a second look at a row."""

    def __init__(self, root: Path, fast: FastReader, usage: Usage) -> None:
        self._root = root
        self._fast = fast
        self._usage = usage
        self._shards = shards.of(root)
        self._hidden = _HiddenNames(root)
        self._kinds: list[_Kind] = []
        self._known: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def read(
        self,
        keys: Sequence[FeatureKey],
        fingerprint: str | None,
        out: torch.Tensor | None,
        read_one: Callable[[FeatureKey], object | None],
    ) -> Batch:
        """The batch; what is not packed, known and sound is asked of `read_one`, which returns None for a miss.

        Raises:
            ValueError: `out` or the features do not fit together.
        """
        left = list(range(len(keys)))
        view = self._shards.view()
        if view.shards and not view.taken and all(type(key) is StepKey for key in keys):
            names = [naming.step_path(key) for key in keys]  # type: ignore[arg-type]
            out, left = self._read_packed(view, names, fingerprint, out)
        missing = []
        for position in left:
            tensor = _main(read_one(keys[position]))
            if tensor is None:
                missing.append(position)
                continue
            if out is None:
                out = _empty(len(keys), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            if out.dtype != tensor.dtype or out.shape[1:] != tensor.shape:
                raise ValueError(f"{keys[position]} is {tensor.dtype} {list(tensor.shape)}, the batch {_shown(out)}")
            out[position].copy_(tensor)
        if out is None:
            out = _empty(len(keys), "float16", ())
        return Batch(out, missing)

    def _read_packed(
        self, view: View, names: list[str], fingerprint: str | None, out: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, list[int]]:
        """Fill what is packed in shards that are mapped; returns the batch and the positions that are left."""
        is_left = self._hidden.among(names, view)
        numbers, rows = view.find_all(names)
        numbers[is_left] = -1
        flat: memoryview | None = None
        kind: _Kind | None = None
        for number in np.unique(numbers[numbers >= 0]).tolist():
            shard = view.shards[number]
            positions = np.flatnonzero(numbers == number)
            is_read = np.zeros(len(positions), bool)
            if shard.memory is not None:
                starts, kinds = self._known_rows(shard, rows[positions])
                is_read = self._readable(shard, rows[positions], [names[at] for at in positions.tolist()], kinds)
                for one in np.unique(kinds[is_read]).tolist():
                    found = self._kinds[one]
                    if fingerprint not in (None, found.fingerprint):
                        is_read &= kinds != one
                        continue
                    if out is None:
                        out = _empty(len(names), found.dtype, found.shape)
                    if kind is None or found[:3] != kind[:3]:
                        _check_fits(out, found, len(names))
                        kind, flat = found, _flat(out)
                if flat is not None and kind is not None:
                    _copy(shard.memory, starts[is_read], flat, positions[is_read], kind.nbytes)
            is_left[positions] = ~is_read
            is_left[numbers < 0] = True
        is_left[numbers < 0] = True
        self._usage.hits([name for name, left in zip(names, is_left.tolist(), strict=True) if not left])
        return out, np.flatnonzero(is_left).tolist()

    def _readable(
        self, shard: Shard, rows: np.ndarray[Any, Any], names: list[str], kinds: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Which of the rows have these very names, count, and are of a known kind."""
        if len(rows) > _ASKED_ONE_BY_ONE:
            counting = shard.counting()[rows]
        else:
            counting = np.fromiter(map(shard.counts, rows.tolist()), bool, len(rows))
        found = shard.names_of(rows)
        if found != names:
            counting &= np.fromiter((a == b for a, b in zip(found, names, strict=True)), bool, len(rows))
        is_readable: np.ndarray[Any, Any] = counting & (kinds >= 0)
        return is_readable

    def _known_rows(
        self, shard: Shard, rows: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Where the tensors of the rows begin in the shard, and the numbers of their kinds."""
        known = self._known.get(shard.id)
        if known is None:
            present = {one.id for one in self._shards.view().shards}
            self._known = {name: one for name, one in self._known.items() if name in present}
            known = np.zeros(shard.rows, np.int64), np.full(shard.rows, _UNKNOWN, np.int16)
            self._known[shard.id] = known
        starts, kinds = known
        for row in rows[kinds[rows] == _UNKNOWN].tolist():
            found = self._looked_at(shard, row)
            if found is not None:
                starts[row], kinds[row] = found
        return starts[rows], kinds[rows]

    def _looked_at(self, shard: Shard, row: int) -> tuple[int, int] | None:
        """Start and kind of a row, its checksum verified; None where a row like it has not been read yet."""
        try:
            if shard.problem(row) is not None:
                return 0, _OTHER
            content = shard.content(row)
        except DamagedFeature:
            return 0, _OTHER
        head = self._fast.head_of(content)
        if head is None:
            return None
        if not head.is_main:
            return 0, _OTHER
        place = head.place
        kind = _Kind(place.dtype, place.shape, place.nbytes, self._fast.fingerprint_in(content))
        if kind not in self._kinds:
            self._kinds.append(kind)
        return int(shard.content_starts[row]) + len(head.content), self._kinds.index(kind)


def _copy(
    source: memoryview, starts: np.ndarray[Any, Any], target: memoryview, positions: np.ndarray[Any, Any], nbytes: int
) -> None:
    for start, at in zip(starts.tolist(), (positions * nbytes).tolist(), strict=True):
        target[at : at + nbytes] = source[start : start + nbytes]


class _HiddenNames:
    """Which packed names a loose file may hide, asked of whole folders that do not change, else file by file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: tuple[object, frozenset[str]] = (None, frozenset())
        self._seen: object = None

    def among(self, names: list[str], view: View) -> np.ndarray[Any, Any]:
        """For each name whether a loose file of this name is there."""
        if any("/" in name for name in names):
            return self._one_by_one(names)
        try:
            status = os.stat(self._root)
        except OSError:
            return np.ones(len(names), bool)
        is_settled = time.time_ns() - status.st_mtime_ns > _SETTLED_AFTER_NS
        signature = (status.st_ino, status.st_mtime_ns, view) if is_settled else None
        if signature is None or signature not in (self._known[0], self._seen):
            self._seen = signature
            return self._one_by_one(names)
        if signature != self._known[0]:
            # Twice the same: likely to stay so, and a listing costs as much as many batches.
            packed = view.hashes()
            loose = [name for name in os.listdir(self._root) if hash(name) in packed]
            self._known = (signature, frozenset(loose))
        hidden = self._known[1]
        if not hidden:
            return np.zeros(len(names), bool)
        return np.fromiter((name in hidden for name in names), bool, len(names))

    def _one_by_one(self, names: list[str]) -> np.ndarray[Any, Any]:
        exists, prefix = os.access, f"{self._root}/"
        return np.fromiter((exists(prefix + name, os.F_OK) for name in names), bool, len(names))


def _main(value: object) -> torch.Tensor | None:
    main = value.get(MAIN_FIELD) if isinstance(value, dict) else value
    if main is None:
        return None
    if not hasattr(main, "dtype"):
        raise ValueError(f"a batch is made of tensors, or of dicts with {MAIN_FIELD!r}, not of {type(value).__name__}")
    tensor: torch.Tensor = main  # type: ignore[assignment]
    return tensor


def _empty(count: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.empty((count, *shape), dtype=getattr(torch, dtype))


def _flat(out: torch.Tensor) -> memoryview:
    import torch

    return out.detach().reshape(-1).view(torch.uint8).numpy().data


def _check_fits(out: torch.Tensor, kind: _Kind, count: int) -> None:
    dtype = str(out.dtype).removeprefix("torch.")
    if dtype != kind.dtype or tuple(out.shape) != (count, *kind.shape):
        raise ValueError(f"the features are {kind.dtype} {list(kind.shape)}, the batch {_shown(out)}")


def _shown(out: torch.Tensor) -> str:
    return f"{out.dtype} {list(out.shape)}"
