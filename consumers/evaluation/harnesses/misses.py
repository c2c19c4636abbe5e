"""Tells of a data set's first miss, because a harness that asks under another name would run uncached to its end."""

from __future__ import annotations

import logging

from cache_store import FeatureStore, canonical_dataset_name
from consumers.evaluation.statistics import CacheStatistics

logger = logging.getLogger("consumers.evaluation")


class MissTeller:
    """Watches the misses of one cache, and warns once for each data set."""

    def __init__(self, store: FeatureStore, statistics: CacheStatistics) -> None:
        self._store, self._statistics = store, statistics
        self._seen, self._told = statistics.misses, set[str]()

    def look(self, dataset: str, video_id: str, nframe: int) -> None:
        """Warn if a request of `dataset`, which just ended, was its first miss."""
        missed, self._seen = self._statistics.misses > self._seen, self._statistics.misses
        if not missed or dataset in self._told:
            return
        self._told.add(dataset)
        held = ", ".join(f"{name} ({held.entries})" for name, held in self._store.stats().datasets.items()) or "nothing"
        logger.warning(
            "not in the cache, computed live: %s of %s (data set %s there, %d frames); %s holds %s. Later misses of "
            "this data set are counted only; on_miss='raise' stops at the first",
            video_id,
            dataset,
            canonical_dataset_name(dataset),
            nframe,
            self._store.location,
            held,
        )
