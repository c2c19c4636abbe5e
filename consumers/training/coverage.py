"""Which steps of episodes a store holds, where, and how they were made; asked of the store all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import ReadOnlyStore, StepKey

# Above so many keys one listing of the store is cheaper than a question for each.
_LIST_ABOVE = 20_000


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

    def key(self, vlm_idx: int, *, nested: bool) -> StepKey:
        """Return the key of a step in one of the two places."""
        return StepKey(self.name, vlm_idx, self.prompt_hash if nested else None)


@dataclass(frozen=True, eq=False)
class Coverage:
    """What of an episode is there: for each of its steps whether it is found, and whether under the prompt's hash."""

    found: np.ndarray  # bool [steps]
    nested: np.ndarray  # bool [steps]
    recipe: Mapping[str, Any] | None  # of its first feature that tells one; equal recipes are one object


def coverage_of(root: Path, wanted: Sequence[Steps]) -> list[Coverage]:
    """Return what the store under `root` holds of each episode. A missing folder holds nothing and is not made.

    Raises:
        StoreFormatError: `root` cannot be a store.
    """
    store = ReadOnlyStore(root) if root.is_dir() else None
    first = _found(store, [(steps, int(i), steps.is_nested) for steps in wanted for i in steps.indices])
    ends = np.cumsum([len(steps.indices) for steps in wanted])
    by_episode = [part.copy() for part in np.split(first, ends[:-1])] if len(wanted) else []
    # Asked by name: a flat store has a million entries to list.
    hashes = {name for name in {steps.prompt_hash for steps in wanted} if (root / name).is_dir()}
    second = [
        (steps, int(i), True)
        for steps, found in zip(wanted, by_episode, strict=True)
        if not steps.is_nested and steps.prompt_hash in hashes
        for i in steps.indices[~found]
    ]
    found_nested = {
        (steps.name, i) for (steps, i, _), there in zip(second, _found(store, second), strict=True) if there
    }
    recipes: dict[str, Mapping[str, Any]] = {}
    return [
        _coverage(store, steps, flat, found_nested, recipes) for steps, flat in zip(wanted, by_episode, strict=True)
    ]


def _coverage(
    store: ReadOnlyStore | None,
    steps: Steps,
    first: np.ndarray,
    found_nested: set[tuple[str, int]],
    recipes: dict[str, Mapping[str, Any]],
) -> Coverage:
    second = np.zeros(len(first), bool)
    if found_nested:
        second[:] = [(steps.name, int(i)) in found_nested for i in steps.indices]
    found = first | second
    nested = np.full(len(found), True) if steps.is_nested else second
    recipe = None
    if store is not None and found.any():
        at = int(found.argmax())
        record = store.record_of(steps.key(int(steps.indices[at]), nested=bool(nested[at])))
        if record is not None and record.recipe is not None and record.recipe_fingerprint is not None:
            recipe = recipes.setdefault(record.recipe_fingerprint, record.recipe)
    return Coverage(found, nested, recipe)


def _found(store: ReadOnlyStore | None, places: Sequence[tuple[Steps, int, bool]]) -> np.ndarray:
    if store is None:
        return np.zeros(len(places), bool)
    keys = (steps.key(index, nested=nested) for steps, index, nested in places)
    if len(places) <= _LIST_ABOVE:
        return np.fromiter((store.contains(key) for key in keys), bool, len(places))
    states = store.states((key, None) for key in keys)
    return np.fromiter((state == "present" for state in states), bool, len(places))
