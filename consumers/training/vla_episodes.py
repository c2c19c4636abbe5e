"""Many robot episodes as one map-style data set, opened with one listing of the store and read batch by batch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset

from cache_store import FeatureKey
from consumers.training.feature_reader import Recipe
from consumers.training.preflight import Preflight, preflight
from consumers.training.vla_dataset import Sample, UnifiedVLADataset, look_up_all, read_features
from pipeline.sources.vla_episodes import refuse_doubles


class VLAEpisodeSet(Dataset[Sample | None]):
    """The samples of `episodes`, episode after episode; all of them read one cache.

    The set has copies of its own (`episodes`); those that it is given stay as they were opened.

    Raises:
        SourceError: two episodes have one name, which names their features.
        ValueError: episodes of different caches, or that differ in `on_stale`.
    """

    def __init__(self, episodes: Iterable[UnifiedVLADataset]) -> None:
        # Another set's opening notes anew what is cached of the same objects, and `filter_by_cache` their samples.
        self.episodes = [copy.copy(episode) for episode in episodes]
        refuse_doubles(episode.data_dir for episode in self.episodes)
        roots = {episode.cache_root for episode in self.episodes}
        if len(roots) > 1:
            raise ValueError(f"episodes of one set read one cache; found {', '.join(sorted(map(str, roots)))}")
        cached = [episode for episode in self.episodes if episode.use_cache]
        answers = {episode.reader.on_stale for episode in cached}
        if len(answers) > 1:
            raise ValueError(f"episodes of one set have one on_stale; found {', '.join(sorted(answers))}")
        # One for all episodes: in each process it opens the store once.
        self._reader = cached[0].reader if cached else None
        look_up_all(cached)
        self._ends = np.cumsum([len(episode) for episode in self.episodes], dtype=np.int64)

    @property
    def cache_found_count(self) -> int:
        """How many of the needed steps were cached at the opening."""
        return sum(episode.cache_found_count for episode in self.episodes)

    @property
    def cache_needed_count(self) -> int:
        """How many steps the samples need."""
        return sum(len(episode.steps.indices) for episode in self.episodes if episode.use_cache)

    def __repr__(self) -> str:
        return (
            f"{len(self.episodes)} episodes, {len(self)} samples, "
            f"VL Cache: {self.cache_found_count}/{self.cache_needed_count}"
        )

    def preflight(self) -> Preflight:
        """Look for every feature that the samples need, and at the arrays, before anything is trained."""
        return preflight(self.episodes)

    def sample_weights(self, weights: Sequence[float]) -> np.ndarray:
        """Return each sample's weight, that of its episode."""
        return np.repeat(np.asarray(weights, np.float64), [len(episode) for episode in self.episodes])

    def digest(self) -> str:
        """Return 16 hex digits that tell which samples these are, and in which order; folders may have moved."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            digest.update(repr((episode.data_dir.name, len(episode))).encode())
            digest.update(episode.steps_of_samples().tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample | None:
        return self.__getitems__([index])[0]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to download the features that these samples need; for a sampler that knows what comes next."""
        if self._reader is not None:
            self._reader.prefetch(_wanted(map(self._place, indices)))

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        places = [self._place(index) for index in indices]
        cached = [place for place in places if place[0].use_cache]
        features = iter(read_features(self._reader, cached) if self._reader is not None else ())
        return [episode.sample(index, next(features) if episode.use_cache else None) for episode, index in places]

    def _place(self, index: int) -> tuple[UnifiedVLADataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        episode = self.episodes[number]
        return episode, index - int(self._ends[number]) + len(episode)


def _wanted(places: Iterable[tuple[UnifiedVLADataset, int]]) -> Iterator[tuple[FeatureKey, Recipe | None]]:
    return ((episode.key_of(index), episode.recipe) for episode, index in places if episode.use_cache)
