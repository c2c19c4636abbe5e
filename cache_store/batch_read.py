"""Reads many features of one shape into one tensor: packed ones straight from the map, all others one by one.

What a row holds is found out once for each process, with its checksum; then only names and places are looked up.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
_UNKNOWN, _OTHER = -1, -2  # not looked at yet; to be read with care
_LEFT, _READ = -1, -2  # in no shard, or hidden; read
_Value = TypeVar("_Value")


class Batch(NamedTuple):
    """Features of several keys: row i of `features` is that of key i, undefined for the positions in `missing`."""

    features: torch.Tensor
    missing: list[int]

    def with_rows(self, values: Mapping[int, object], *, is_given: bool) -> Batch:
        """The batch with the features that were found for some of the missing positions.

        Unless the tensor `is_given` by the caller, an empty batch gets the dtype and shape of the first of them.

        Raises:
            ValueError: they do not fit together, or are no tensors.
        """
        out = self.features
        is_unknown = not is_given and len(self.missing) == len(out)
        for position, value in values.items():
            tensor = _main(value)
            if tensor is None:
                raise ValueError(f"position {position} has no {MAIN_FIELD!r}")
            if is_unknown:
                is_unknown = False
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
        self._kinds: dict[int, _Kind] = {}
        self._numbers: dict[_Kind, int] = {}
        self._next_number = itertools.count()
        self._rows: _Rows | None = None

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
        if view.shards and not view.taken and set(map(type, keys)) == {StepKey}:
            out, left = self._read_packed(view, keys, fingerprint, out)  # type: ignore[arg-type]
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
        self, view: View, keys: Sequence[StepKey], fingerprint: str | None, out: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, list[int]]:
        """Fill what is packed in shards that are mapped; returns the batch and the positions that are left."""
        known = self._known_in(view)
        names = list(map(naming.step_path, keys))
        rows = view.find_all(names)
        rows[self._hidden.among(names, view)] = _LEFT
        at = np.flatnonzero(rows != _LEFT)
        kinds = self._kinds_of(view, known, rows[at])
        found = _distinct(kinds)
        fit = [kind for kind in found if kind >= 0 and fingerprint in (None, self._kinds[kind].fingerprint)]
        if fit != found:
            at = at[np.isin(kinds, fit)]
        at = at[known.is_sound(rows[at], _chosen(names, at))]
        if len(at):
            for number in fit if len(at) == len(kinds) else _distinct(known.kinds[rows[at]]):
                kind = self._kinds[number]
                if out is None:
                    out = _empty(len(names), kind.dtype, kind.shape)
                _check_fits(out, kind, len(names))
            if out is not None:  # it is: each row has a kind
                known.copy(rows[at], out, at)
        self._usage.hits(_chosen(names, at), [key.dataset for key in _chosen(keys, at)])
        rows[at] = _READ
        return out, np.flatnonzero(rows != _READ).tolist()

    def _known_in(self, view: View) -> _Rows:
        known = self._rows
        if known is None or known.view is not view:
            self._rows = known = _Rows(view, known)
        return known

    def _kinds_of(self, view: View, known: _Rows, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The numbers of the rows' kinds, having looked at those that nobody looked at before."""
        for row in rows[known.kinds[rows] == _UNKNOWN].tolist():
            found = self._looked_at(*view.place(row))
            if found is not None:
                known.starts[row], known.kinds[row] = found
        kinds: np.ndarray[Any, Any] = known.kinds[rows]
        return kinds

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
        number = self._numbers.get(kind)
        if number is None:
            number = next(self._next_number)
            self._kinds[number] = kind  # first: a number that another thread learns of has its kind
            number = self._numbers.setdefault(kind, number)
        return int(shard.content_starts[row]) + len(head.content), number


class _Rows:
    """What is known of the rows of a view, counted through all its shards: a batch may touch hundreds of them."""

    def __init__(self, view: View, before: _Rows | None) -> None:
        self.view = view
        count = int(view.firsts[-1])
        self.starts = np.zeros(count, np.int64)  # of the tensors, in the shards' files
        self.kinds = np.full(count, _UNKNOWN, np.int32)
        self._texts = [shard.text[0] for shard in view.shards]
        # Of the names in their shard's text: one more for each shard.
        self._names_at = np.concatenate([shard.text[1] for shard in view.shards])
        span = _Span([shard.memory for shard in view.shards])
        self._bytes, self._maps_at = np.asarray(span), span.starts
        flags_at = np.array([shard.flags_at for shard in view.shards], np.int64).T
        self._live_at, self._dead_at = flags_at + span.starts - view.firsts[:-1]
        parts, known = self.by_shard(), {} if before is None else before.by_shard()
        for id_ in parts.keys() & known.keys():
            (starts, kinds), (known_starts, known_kinds) = parts[id_], known[id_]
            starts[:], kinds[:] = known_starts, known_kinds
        for shard in view.shards:
            if shard.memory is None:
                parts[shard.id][1][:] = _OTHER

    def by_shard(self) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Starts and kinds of each shard's rows, as parts of the whole."""
        at = self.view.firsts[1:-1]
        parts = zip(np.split(self.starts, at), np.split(self.kinds, at), strict=True)
        return dict(zip((shard.id for shard in self.view.shards), parts, strict=True))

    def is_sound(self, rows: np.ndarray[Any, Any], names: Sequence[str]) -> np.ndarray[Any, Any]:
        """Which of the rows, all of mapped shards, have these very names, and count."""
        numbers = self._shards_of(rows)
        text_at, content = rows + numbers, self._bytes
        live, dead = content[self._live_at[numbers] + rows], content[self._dead_at[numbers] + rows]
        is_sound: np.ndarray[Any, Any] = (live != 0) & (dead == 0)
        starts, ends = self._names_at[text_at].tolist(), self._names_at[text_at + 1].tolist()
        texts = self._texts
        found = [texts[n][start:end] for n, start, end in zip(numbers.tolist(), starts, ends, strict=True)]
        if found != names:
            is_sound &= np.fromiter(map(operator.eq, found, names), bool, len(names))
        return is_sound

    def copy(self, rows: np.ndarray[Any, Any], out: torch.Tensor, positions: np.ndarray[Any, Any]) -> None:
        """Copy the tensors of sound rows to their positions in `out`, which has the same shape."""
        import torch

        nbytes = out.nbytes // len(out)
        starts = self.starts[rows] + self._maps_at[self._shards_of(rows)]
        target = out.detach().reshape(-1).view(torch.uint8)
        # With more threads than one torch would start OpenMP's, after which a fork of this process may hang.
        if nbytes and len(rows) == len(out) and torch.get_num_threads() == 1:
            content = torch.from_numpy(self._bytes)
            windows = content.as_strided((len(content) - nbytes + 1, nbytes), (1, 1))
            torch.index_select(windows, 0, torch.from_numpy(starts), out=target.view(-1, nbytes))
            return
        source, to = self._bytes.data, target.numpy().data
        for start, at in zip(starts.tolist(), (positions * nbytes).tolist(), strict=True):
            to[at : at + nbytes] = source[start : start + nbytes]

    def _shards_of(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        numbers: np.ndarray[Any, Any] = self.view.firsts.searchsorted(rows, side="right") - 1
        return numbers


class _Span:
    """Maps of files as one array of bytes, from the begin of the first in memory to the end of the last.

    So rows of hundreds of maps are read by one call. What lies between the maps must not be touched.
    """

    def __init__(self, maps: Sequence[memoryview | None]) -> None:
        held = [np.empty(0, np.uint8) if one is None else np.frombuffer(one, np.uint8) for one in maps]
        self._held = [one for one in held if len(one)] or [np.empty(0, np.uint8)]
        begin = min(one.ctypes.data for one in self._held)
        end = max(one.ctypes.data + len(one) for one in self._held)
        # Where each map begins in the array.
        self.starts = np.array([one.ctypes.data - begin if len(one) else 0 for one in held], np.int64)
        # Said to be writable, since torch warns of what is not; nobody writes to it.
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (end - begin,), "data": (begin, False)}


class _HiddenNames:
    """Which packed names a loose file may hide, asked of whole folders that do not change, else file by file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: tuple[object, frozenset[str]] = (None, frozenset())
        self._seen: object = None

    def among(self, names: list[str], view: View) -> np.ndarray[Any, Any]:
        """For each name whether a loose file of this name is there."""
        if "/" in "".join(names):
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


def _chosen(values: Sequence[_Value], positions: np.ndarray[Any, Any]) -> Sequence[_Value]:
    """The values at positions, which are in their order."""
    return values if len(positions) == len(values) else [values[position] for position in positions.tolist()]


def _distinct(kinds: np.ndarray[Any, Any]) -> list[int]:
    """The values in it, in order; nearly always one."""
    if len(kinds) and (kinds == kinds[0]).all():
        return [int(kinds[0])]
    found: list[int] = np.unique(kinds).tolist()
    return found


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


def _check_fits(out: torch.Tensor, kind: _Kind, count: int) -> None:
    dtype = str(out.dtype).removeprefix("torch.")
    if dtype != kind.dtype or tuple(out.shape) != (count, *kind.shape):
        raise ValueError(f"the features are {kind.dtype} {list(kind.shape)}, the batch {_shown(out)}")


def _shown(out: torch.Tensor) -> str:
    return f"{out.dtype} {list(out.shape)}"
