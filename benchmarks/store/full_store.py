"""A store of a million entries, made once in a run and used by the rows about many entries."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.store.features import small_features
from benchmarks.store.flushing import flushes_skipped
from benchmarks.store.keys import RECIPE, step_key
from benchmarks.store.scale import Scale
from cache_store import FeatureStore, PutItem

FAR_LIMIT_BYTES = 2**50
_BATCH = 2_000


def filled(folder: Path, scale: Scale) -> Path:
    """The root of a closed store of `scale.entries` entries under `folder`; filled by the first call.

    All features are steps in the flat form, one folder, put by the store itself but without flush.
    """
    root = folder / "store"
    if root.exists():
        return root
    features = small_features(_BATCH, scale.entry_width)
    start_s = time.monotonic()
    with FeatureStore(root, limit_bytes=FAR_LIMIT_BYTES) as store, flushes_skipped():
        for start in range(0, scale.entries, _BATCH):
            count = min(_BATCH, scale.entries - start)
            store.put_many([PutItem(step_key(start + i), features[i], RECIPE) for i in range(count)])
    print(f"filled with {scale.entries:,} entries in {time.monotonic() - start_s:.0f} s", file=sys.stderr, flush=True)
    return root
