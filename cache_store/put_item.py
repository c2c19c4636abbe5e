"""What a caller wants to store, and the file that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cache_store import codec, int8, naming
from cache_store.archive import Record
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.recipes import recipe_fingerprint


class PutItem(NamedTuple):
    """One feature for `FeatureStore.put_many`; the fields are `put`'s arguments."""

    key: FeatureKey
    value: object
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


class EncodedItem(NamedTuple):
    """A feature file's content, its recipe's fingerprint, and for video features the dtype."""

    buffers: list[bytes | memoryview]
    fingerprint: str | None
    video_dtype: str | None


def encoded_item(item: PutItem) -> EncodedItem:
    """Encode one feature.

    Raises:
        InvalidKey, TypeError, ValueError: key, value, recipe or provenance cannot be stored.
    """
    if item.value is None:
        raise TypeError("None cannot be stored: get() returns it for a miss")
    naming.relative_path(item.key)
    fingerprint = None if item.recipe is None else recipe_fingerprint(item.recipe)
    record = Record(key_fields(item.key), item.recipe, fingerprint, item.provenance)
    value = int8.for_storage(item.value, item.recipe)
    dtype = codec.feature_dtype(value) if isinstance(item.key, VideoKey) else None
    return EncodedItem(codec.encode(value, record=record), fingerprint, dtype)


def key_fields(key: FeatureKey) -> dict[str, Any]:
    """A key as the record of its file keeps it."""
    if isinstance(key, StepKey):
        return {"kind": "step", "dataset": key.dataset, "vlm_idx": int(key.vlm_idx), "prompt_hash": key.prompt_hash}
    return {
        "kind": "video",
        "dataset": key.dataset,
        "video_id": key.video_id,
        "nframe": int(key.nframe),
        "model_signature": key.model_signature,
    }
