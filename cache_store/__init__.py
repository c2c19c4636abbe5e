"""Keeps features: key -> file, atomic, under a size limit, shared by any number of processes."""

from cache_store.archive import Record
from cache_store.codec import FeatureInfo, TensorInfo, describe, video_value
from cache_store.dataset_names import canonical_dataset_name, known_aliases
from cache_store.errors import (
    CacheStoreError,
    DamagedFeature,
    EntryExists,
    InexactFeature,
    InvalidKey,
    LocalOnly,
    RecipeMismatch,
    StoreFormatError,
    StoreFull,
    StoreReadError,
    StoreWriteError,
)
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.lookup import Lookup
from cache_store.naming import model_signature, prompt_hash
from cache_store.put_item import PutItem
from cache_store.read_only import ReadOnlyStore
from cache_store.recipes import recipe_fingerprint
from cache_store.reports import (
    DatasetStats,
    EntryInfo,
    Evicted,
    Eviction,
    ModelStats,
    PinInfo,
    Problem,
    PruneReport,
    StoreStats,
    VerifyProgress,
    VerifyReport,
)
from cache_store.settings import absolute_root, is_root
from cache_store.store import FeatureStore
from cache_store.vla_manager import VLACacheManager, get_cache_manager

__all__ = [
    "CacheStoreError",
    "DamagedFeature",
    "DatasetStats",
    "EntryExists",
    "EntryInfo",
    "Evicted",
    "Eviction",
    "FeatureInfo",
    "FeatureKey",
    "FeatureStore",
    "InexactFeature",
    "InvalidKey",
    "LocalOnly",
    "Lookup",
    "ModelStats",
    "PinInfo",
    "Problem",
    "PruneReport",
    "PutItem",
    "ReadOnlyStore",
    "RecipeMismatch",
    "Record",
    "StepKey",
    "StoreFormatError",
    "StoreFull",
    "StoreReadError",
    "StoreStats",
    "StoreWriteError",
    "TensorInfo",
    "VLACacheManager",
    "VerifyProgress",
    "VerifyReport",
    "VideoKey",
    "absolute_root",
    "canonical_dataset_name",
    "describe",
    "get_cache_manager",
    "is_root",
    "known_aliases",
    "model_signature",
    "prompt_hash",
    "recipe_fingerprint",
    "video_value",
]
