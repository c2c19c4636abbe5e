"""Answers for many keys at once from one listing, where asking file by file would take minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_store import naming
from cache_store.keys import FeatureKey, StepKey
from cache_store.reader import State, Wanted, candidates

if TYPE_CHECKING:
    from pyarrow import Array, Table

# Pairs of a key and its recipe; without a recipe every file fits.
Asked = Iterable[tuple[FeatureKey, Mapping[str, Any] | None]]
_BATCH = 4096
_ROWS = 65_536


class KnownRecipes:
    """The recipe of each stored file, as far as the books know it; beside the table about 60 bytes for each.

    Names are found by their hash values, sorted: a dictionary of a million names would take 200 MB.
    """

    def __init__(self, table: Table) -> None:
        import pyarrow as pa

        self._names = table["name"].combine_chunks()
        recipes = table["fingerprint8"].combine_chunks().dictionary_encode()
        self._labels: list[str] = recipes.dictionary.to_pylist()
        self._recipe_of = recipes.indices.to_numpy(zero_copy_only=False)
        hashes = np.empty(len(self._names), np.int64)
        for start in range(0, len(hashes), _ROWS):
            part = self._names.slice(start, _ROWS).to_pylist()
            hashes[start : start + len(part)] = _hashes(part)
        self._rows = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._rows]
        pa.default_memory_pool().release_unused()  # left over from the listing, and more than what follows takes

    def states(self, asked: Sequence[tuple[FeatureKey, Wanted]]) -> list[State | None]:
        """The states of several keys; None where only a file itself can tell, as a video's can.

        Raises:
            InvalidKey: a key cannot be a file name.
        """
        names = [naming.relative_path(key) for key, _ in asked]
        return [
            self._state(row, wanted) if isinstance(key, StepKey) else None
            for (key, wanted), row in zip(asked, self._rows_of(names), strict=True)
        ]

    def _state(self, row: int, wanted: Wanted) -> State | None:
        if row < 0:
            return "missing"
        if wanted.fingerprint is None:
            return "present"
        label = self._labels[self._recipe_of[row]]
        if not label:
            return None
        return "present" if wanted.fingerprint.startswith(label) else "stale"

    def _rows_of(self, names: list[str]) -> list[int]:
        """The row of each name, -1 where there is none."""
        if not len(self._rows):
            return [-1] * len(names)
        hashes = _hashes(names)
        places = np.searchsorted(self._hashes, hashes)
        rows = self._rows[np.minimum(places, len(self._rows) - 1)]
        there = self._names.take(rows).to_pylist()
        return [
            row if found == name else self._row_further_on(name, place)
            for name, found, row, place in zip(names, there, rows.tolist(), places.tolist(), strict=True)
        ]

    def _row_further_on(self, name: str, place: int) -> int:
        """As `_rows_of`, for a name that is not there, or shares its hash value with the first name there."""
        hashed = hash(name)
        while place < len(self._hashes) and self._hashes[place] == hashed:
            row = int(self._rows[place])
            if self._names[row].as_py() == name:
                return row
            place += 1
        return -1


def _hashes(names: list[str]) -> np.ndarray:
    return np.fromiter(map(hash, names), np.int64, len(names))


def with_wanted(asked: Asked) -> Iterator[tuple[FeatureKey, Wanted]]:
    """The keys with the fingerprints of their recipes; one object given many times is digested once."""
    latest: Mapping[str, Any] | None = None
    wanted = Wanted.of(None)
    for key, recipe in asked:
        if recipe is not latest:
            latest, wanted = recipe, Wanted.of(recipe)
        yield key, wanted


def in_batches(asked: Asked) -> Iterator[list[tuple[FeatureKey, Wanted]]]:
    """What `with_wanted` yields, in lists."""
    batch: list[tuple[FeatureKey, Wanted]] = []
    for pair in with_wanted(asked):
        batch.append(pair)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def rows_asked_for(table: Table, asked: Asked) -> Array:
    """For each row whether it is the feature of one of these keys in the recipe that goes with it.

    A step has one file for all recipes; a video's plain file may be another recipe's.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names, recipes = [], []
    for batch in in_batches(asked):
        found = [
            (name, "" if isinstance(key, StepKey) else (wanted.fingerprint or "")[:8])
            for key, wanted in batch
            for name in candidates(key, wanted.fingerprint)
        ]
        names.append(pa.array((name for name, _ in found), pa.string()))
        recipes.append(pa.array((recipe for _, recipe in found), pa.string()).dictionary_encode())
    if not names:
        return pa.repeat(pa.scalar(False), table.num_rows)
    places = pc.index_in(table["name"], value_set=pa.chunked_array(names)).combine_chunks()
    wanted8 = pa.chunked_array(recipes).unify_dictionaries().combine_chunks().take(places).cast(pa.string())
    found8 = table["fingerprint8"].combine_chunks()
    fits = pc.or_(pc.or_(pc.equal(wanted8, ""), pc.equal(found8, "")), pc.equal(wanted8, found8))
    return pc.and_(pc.is_valid(places), pc.fill_null(fits, False))
