"""Answers for many keys at once from one listing, where asking file by file would take minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
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
_NAMES_AT_ONCE = 131_072


class KnownRecipes:
    """The recipe of each stored file, as far as the books know it; beside the table about 20 bytes for each.

    Names are found by their hash values, sorted: a dictionary of a million names would take 200 MB.
    """

    def __init__(self, table: Table) -> None:
        import pyarrow as pa

        self._chunks = table["name"].chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])  # of the chunks, in rows
        recipes = table["fingerprint8"].dictionary_encode().combine_chunks()
        self._labels: list[str] = recipes.dictionary.to_pylist()
        self._recipe_of = recipes.indices.to_numpy(zero_copy_only=False)
        parts = (chunk.slice(at, _ROWS) for chunk in self._chunks for at in range(0, len(chunk), _ROWS))
        hashes = np.concatenate([np.empty(0, np.int64), *(_hashes(part.to_pylist()) for part in parts)])
        self._rows = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._rows]
        pa.default_memory_pool().release_unused()  # left over from the listing, and more than what follows takes

    def states(self, asked: Sequence[tuple[FeatureKey, Wanted]]) -> list[State | None]:
        """The states of several keys; None where only a file itself can tell, as that of a video can.

        Raises:
            InvalidKey: a key cannot be a file name.
        """
        steps = [key for key, _ in asked if isinstance(key, StepKey)]
        if len(steps) == len(asked):
            # A robot data set has a million of them, each with one name.
            rows = self._rows_of(list(map(naming.step_path, steps)))
            return [self._state(row, wanted) for row, (_, wanted) in zip(rows, asked, strict=True)]
        names = [list(candidates(key, wanted.fingerprint)) for key, wanted in asked]
        found = iter(self._rows_of(list(chain.from_iterable(names))))
        rows = [max(islice(found, len(of_one))) for of_one in names]
        return [
            self._state(row, wanted) if row < 0 or isinstance(key, StepKey) else None
            for (key, wanted), row in zip(asked, rows, strict=True)
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
        # In their order, because each search begins where the one before it has warmed the memory.
        order = np.argsort(hashes)
        places = np.empty(len(hashes), np.int64)
        places[order] = np.searchsorted(self._hashes, hashes[order])
        rows = self._rows[np.minimum(places, len(self._rows) - 1)]
        there = self._names_of(rows)
        return [
            row if found == name else self._row_further_on(name, place)
            for name, found, row, place in zip(names, there, rows.tolist(), places.tolist(), strict=True)
        ]

    def _row_further_on(self, name: str, place: int) -> int:
        """As `_rows_of`, for a name that is not there, or shares its hash value with the first name there."""
        hashed = hash(name)
        while place < len(self._hashes) and self._hashes[place] == hashed:
            row = int(self._rows[place])
            if self._names_of(np.array([row]))[0] == name:
                return row
            place += 1
        return -1

    def _names_of(self, rows: np.ndarray) -> list[str]:
        # Chunk by chunk: to take from all at once would copy them into one.
        chunks = np.searchsorted(self._starts, rows, side="right") - 1
        names = np.empty(len(rows), object)
        for number in np.unique(chunks):
            in_chunk = chunks == number
            names[in_chunk] = self._chunks[number].take(rows[in_chunk] - self._starts[number]).to_pylist()
        found: list[str] = names.tolist()
        return found


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

    found8 = table["fingerprint8"].combine_chunks()
    is_asked_for = pa.repeat(pa.scalar(False), table.num_rows)
    for names, recipes in _names_to_recipes(asked):
        # By parts, because the hash table of a million names takes 70 MB.
        places = pc.index_in(table["name"], value_set=pa.array(names, pa.string())).combine_chunks()
        wanted8 = pa.array(recipes, pa.string()).take(places)
        fits = pc.or_(pc.or_(pc.equal(wanted8, ""), pc.equal(found8, "")), pc.equal(wanted8, found8))
        is_asked_for = pc.or_(is_asked_for, pc.fill_null(fits, False))
    return is_asked_for


def _names_to_recipes(asked: Asked) -> Iterator[tuple[list[str], list[str]]]:
    """Where the features may lie, and the first digits of the recipe that a file there must have, "" for any."""
    names: list[str] = []
    recipes: list[str] = []
    for key, wanted in with_wanted(asked):
        found = list(candidates(key, wanted.fingerprint))
        names += found
        recipes += ["" if isinstance(key, StepKey) else (wanted.fingerprint or "")[:8]] * len(found)
        if len(names) >= _NAMES_AT_ONCE:
            yield names, recipes
            names, recipes = [], []
    if names:
        yield names, recipes
