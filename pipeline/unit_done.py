"""What says that a unit is done: its feature is in the store."""

from __future__ import annotations

from dataclasses import dataclass

from cache_store import FeatureStore
from pipeline.work_plan import BuildTask, Unit


@dataclass(frozen=True)
class UnitDone:
    """A unit whose feature is in the store."""

    key: str
    bytes: int  # of the published file
    encode_s: float = 0.0  # on the device
    write_s: float = 0.0  # from the feature's arrival on the host to its final name
    split_into: int | None = None  # frames or steps at once, where the device had no memory for what the recipe asks
    is_found: bool = False  # in the store, and not published by who tells it


def published(unit: Unit, task: BuildTask, store: FeatureStore) -> UnitDone | None:
    """Return the unit as done if the store has its feature by now, and keep that for the length of the build."""
    recipe = task.recipe(unit.sample)
    if store.state_of(unit.key, recipe=recipe) != "present":
        return None
    if task.run_id is not None:
        store.protect([unit.key], recipe=recipe)
    # None under an alias of its data set.
    return UnitDone(unit.name, store.bytes_of(unit.key, recipe=recipe) or 0, is_found=True)
