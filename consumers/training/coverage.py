"""Which steps of episodes a store holds, where, and how they were made; asked of the store all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import ReadOnlyStore, StepKey


@dataclass(frozen=True, eq=False)
class Steps:
    """What an episode needs: `indices` of steps, ascending, under its name.

    `prompt_hash` is that of the folder in which its features may lie; with `is_nested` they lie nowhere else, without
    it the flat names come first.
    """

    name: str
    indices: np.ndarray
    prompt_hash: str
    is_nested: bool

    @property
    def place(self) -> tuple[str, str]:
        """The folder of its features and their name."""
        return self.prompt_hash, self.name

    def key(self, vlm_idx: int, *, nested: bool) -> StepKey:
        """Return the key of a step in one of the two places."""
        return StepKey(self.name, vlm_idx, self.prompt_hash if nested else None)


@dataclass(frozen=True, eq=False)
class Coverage:
    """What of an episode is there: for each of its steps whether it is found, and whether under the prompt's hash."""

    found: np.ndarray  # bool [steps]
    nested: np.ndarray  # bool [steps]
    recipe: Mapping[str, Any] | None  # of its first feature that tells one; equal recipes are one object


def coverage_of(root: Path | str, wanted: Sequence[Steps]) -> list[Coverage]:
    """Return what the store under `root` holds of each episode. A missing folder holds nothing and is not made.

    Raises:
        StoreFormatError: `root` cannot be a store.
        StoreReadError: the service behind a URL refused or could not be reached.
    """
    store = ReadOnlyStore(root)
    first = _found(store, [(steps, int(i), steps.is_nested) for steps in wanted for i in steps.indices])
    ends = np.cumsum([len(steps.indices) for steps in wanted])
    by_episode = [part.copy() for part in np.split(first, ends[:-1])] if len(wanted) else []
    second = [
        (steps, int(i), True)
        for steps, found in zip(wanted, by_episode, strict=True)
        if not steps.is_nested
        for i in steps.indices[~found]
    ]
    there = _found(store, second)
    nested = {(*steps.place, i) for (steps, i, _), is_there in zip(second, there, strict=True) if is_there}
    places = [_places(steps, flat, nested) for steps, flat in zip(wanted, by_episode, strict=True)]
    recipes = iter(_recipes(store, [_first_key(steps, *at) for steps, at in zip(wanted, places, strict=True)]))
    return [Coverage(found, is_nested, next(recipes)) for found, is_nested in places]


def _places(steps: Steps, flat: np.ndarray, nested: set[tuple[str, str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each step whether it is there, and whether it lies under the prompt's hash."""
    second = np.array([(*steps.place, int(i)) in nested for i in steps.indices], bool) if nested else flat & False
    return flat | second, np.full(len(flat), True) if steps.is_nested else second


def _first_key(steps: Steps, found: np.ndarray, nested: np.ndarray) -> StepKey | None:
    at = int(found.argmax()) if found.any() else None
    return None if at is None else steps.key(int(steps.indices[at]), nested=bool(nested[at]))


def _recipes(store: ReadOnlyStore, keys: Sequence[StepKey | None]) -> Iterator[Mapping[str, Any] | None]:
    """The recipe in the file of each key; equal ones are one object."""
    records = store.record_of_each([key for key in keys if key is not None])
    known: dict[str, Mapping[str, Any]] = {}
    for key in keys:
        record = None if key is None else next(records)
        if record is None or record.recipe is None or record.recipe_fingerprint is None:
            yield None
        else:
            yield known.setdefault(record.recipe_fingerprint, record.recipe)


def _found(store: ReadOnlyStore, places: Sequence[tuple[Steps, int, bool]]) -> np.ndarray:
    return np.array(store.contains_each([steps.key(index, nested=nested) for steps, index, nested in places]), bool)
