"""Which steps of episodes a store holds, where, and how they were made; asked of the store all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import ReadOnlyStore, StepKey

# Takes a second or two, at 0.1 to 0.2 ms a file; a million files of the old scripts would take minutes.
MOST_READ = 10_000


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
    recipe: Mapping[str, Any] | None  # of its first feature that has one, as far as `coverage_of` looks


def coverage_of(root: Path | str, wanted: Sequence[Steps]) -> list[Coverage]:
    """Return what the store under `root` holds of each episode. A missing folder holds nothing and is not made.

    Of each episode one file is read for its recipe, and more, `MOST_READ` in all, where files without one come first.

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
    keys = [_keys(steps, *at) for steps, at in zip(wanted, places, strict=True)]
    recipes = first_recipes(store, keys, most_read=MOST_READ)
    return [Coverage(*at, recipe) for at, recipe in zip(places, recipes, strict=True)]


def first_recipes(
    store: ReadOnlyStore, episodes: Sequence[Iterable[StepKey]], *, most_read: int | None = None
) -> list[Mapping[str, Any] | None]:
    """Return the recipe of each episode's first feature that has one, None where none has; equal ones are one object.

    Files of the old scripts have none. With `most_read` the search for what comes behind them ends, for all episodes,
    before more files are read than that; every episode's first feature is read in any case.
    """
    found: list[Mapping[str, Any] | None] = [None] * len(episodes)
    known: dict[str, Mapping[str, Any]] = {}
    left = {number: iter(keys) for number, keys in enumerate(episodes)}
    num_read, at_once = 0, 1
    while left:
        asked = [(number, key) for number, keys in left.items() for key in islice(keys, at_once)]
        if num_read and most_read is not None and num_read + len(asked) > most_read:
            break
        for (number, _), record in zip(asked, store.record_of_each([key for _, key in asked]), strict=True):
            if found[number] is not None or record is None or record.recipe is None:
                continue
            if record.recipe_fingerprint is not None:
                found[number] = known.setdefault(record.recipe_fingerprint, record.recipe)
        left = {number: left[number] for number, _ in asked if found[number] is None}
        num_read, at_once = num_read + len(asked), 2 * at_once
    return found


def _places(steps: Steps, flat: np.ndarray, nested: set[tuple[str, str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each step whether it is there, and whether it lies under the prompt's hash."""
    second = np.array([(*steps.place, int(i)) in nested for i in steps.indices], bool) if nested else flat & False
    return flat | second, np.full(len(flat), True) if steps.is_nested else second


def _keys(steps: Steps, found: np.ndarray, nested: np.ndarray) -> Iterator[StepKey]:
    return (steps.key(int(steps.indices[at]), nested=bool(nested[at])) for at in np.flatnonzero(found))


def _found(store: ReadOnlyStore, places: Sequence[tuple[Steps, int, bool]]) -> np.ndarray:
    return np.array(store.contains_each([steps.key(index, nested=nested) for steps, index, nested in places]), bool)
