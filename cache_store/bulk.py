"""Answers for many keys at once from one listing, where asking file by file would take minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cache_store import naming
from cache_store.keys import FeatureKey, StepKey
from cache_store.reader import State, Wanted

if TYPE_CHECKING:
    from pyarrow import Table


class KnownRecipes:
    """The recipe of each stored file, as far as the books know it; about 200 bytes of memory for each."""

    def __init__(self, table: Table) -> None:
        import pyarrow as pa

        recipes = table["fingerprint8"].combine_chunks().dictionary_encode()
        pa.default_memory_pool().release_unused()  # left over from the listing, and more than what follows takes
        self._labels: list[str] = recipes.dictionary.to_pylist()
        self._recipe_of: dict[str, int] = dict(zip(table["name"].to_pylist(), recipes.indices.to_pylist(), strict=True))

    def state(self, key: StepKey, wanted: Wanted) -> State | None:
        """The state of a step's file; None when only the file itself can tell its recipe.

        Raises:
            InvalidKey: the key cannot be a file name.
        """
        recipe = self._recipe_of.get(naming.relative_path(key))
        if recipe is None:
            return "missing"
        if wanted.fingerprint is None:
            return "present"
        if not self._labels[recipe]:
            return None
        return "present" if wanted.fingerprint.startswith(self._labels[recipe]) else "stale"


def with_wanted(asked: Iterable[tuple[FeatureKey, Mapping[str, Any] | None]]) -> Iterator[tuple[FeatureKey, Wanted]]:
    """The keys with the fingerprints of their recipes; one object given many times is digested once."""
    latest: Mapping[str, Any] | None = None
    wanted = Wanted.of(None)
    for key, recipe in asked:
        if recipe is not latest:
            latest, wanted = recipe, Wanted.of(recipe)
        yield key, wanted
