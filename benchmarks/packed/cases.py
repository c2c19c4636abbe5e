"""What row `million` runs in processes of their own, beside the cases of the store; imports inside, as there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.store import cases

_FILLED_AT_ONCE = 2_000


def fill(root: Path, *, entries: int, width: int) -> dict[str, Any]:
    """Put so many steps into a new store, without flush."""
    from dataclasses import replace

    from benchmarks.store.full_store import filled
    from benchmarks.store.scale import Scale

    filled(root.parent, replace(Scale(), entries=entries, entry_width=width))
    return {}


def pack(root: Path, *, shard_bytes: int) -> dict[str, Any]:
    """Pack all entries into shards of another size than the usual one, so that few entries fill several."""
    from cache_store import FeatureStore, packing

    packing.SHARD_BYTES = shard_bytes
    with FeatureStore(root) as store:
        return {"files": store.pack().files}


def keys(root: Path) -> dict[str, Any]:
    """Ask for every key."""
    from cache_store import FeatureStore

    with FeatureStore(root) as store:
        return {"present": sum(1 for _ in store.keys())}


def get(root: Path, *, entries: int, reads: int, width: int) -> dict[str, Any]:
    """Read entries one by one at random; refuses a feature that is not the one that was put."""
    from benchmarks.store.features import shuffled
    from benchmarks.store.keys import RECIPE, step_key
    from benchmarks.store.small_reads import check_equal
    from cache_store import FeatureStore

    written = _written(width)
    with FeatureStore(root) as store:
        for index in shuffled(entries)[:reads]:
            check_equal("get", store.get(step_key(index), recipe=RECIPE), written[index % _FILLED_AT_ONCE])
    return {"read": reads}


def get_batch(root: Path, *, entries: int, batches: int, size: int, width: int) -> dict[str, Any]:
    """Read batches of random entries; refuses one that does not hold what was put."""
    from benchmarks.store.features import shuffled
    from benchmarks.store.keys import RECIPE, step_key
    from benchmarks.store.small_reads import check_equal
    from cache_store import FeatureStore

    written, order = _written(width), shuffled(entries)
    with FeatureStore(root) as store:
        for number in range(batches):
            part = [order[at % entries] for at in range(number * size, (number + 1) * size)]
            found = store.get_batch([step_key(index) for index in part], recipe=RECIPE)
            check_equal("get_batch", found.features, written[[index % _FILLED_AT_ONCE for index in part]])
    return {"read": batches * size}


def _written(width: int) -> Any:
    """The features that `full_store.filled` puts over and over."""
    from benchmarks.store.features import small_features

    return small_features(_FILLED_AT_ONCE, width)


CASES: dict[str, Callable[..., dict[str, Any]]] = cases.CASES | {
    "fill": fill,
    "pack": pack,
    "keys": keys,
    "get": get,
    "get_batch": get_batch,
}
