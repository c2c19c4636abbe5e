"""Features of pairs of frames, encoded once each: kept in memory while in use, and in a store if one is given."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cache_store import CacheStoreError, FeatureStore, VideoKey, recipe_fingerprint
from consumers.streaming.qwen_runner import QwenRunner
from pipeline.encoders.live_weights import adapter_states, live_digest, module_marks
from pipeline.encoders.qwen2_5_vl import vision_architecture_sha256

DATASET = "stream-frame-pairs"

logger = logging.getLogger("consumers.streaming")


@dataclass
class PairCounts:
    """What became of the pairs that were asked for."""

    encoded: int = 0
    from_memory: int = 0
    from_store: int = 0


class PairFeatures:
    """The vision tower never looks from one group of frames to another, so a pair's features are its own.

    Each pair goes through the tower alone, in the tower's dtype: its bits depend on nothing but its pixels. Memory
    holds what the last call asked for, unless the tower has changed since; the store is keyed by the resized pixels and
    the recipe (weights, architecture, processor, dtype, kernel). A store that fails costs a warning, not the answer.
    """

    def __init__(self, runner: QwenRunner, store: FeatureStore | None = None) -> None:
        if store is not None and not hasattr(store, "put"):
            raise TypeError(f"feature_store must be an open FeatureStore, got {store!r}")
        self._runner, self._store = runner, store
        self._memory: dict[Hashable, torch.Tensor] = {}
        self._grid = (0, 0)
        self._marks: object = None  # of the tower whose features and recipe are held

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """Everything that changes the numbers, of the tower as it was at the last `get`.

        The first call after a change reads the tower's weights for their digest.
        """
        tower = self._runner.model.model.visual
        return {
            "family": "qwen2_5_vl",
            "tap_point": "merged tokens of one pair of frames",
            "weights_sha256": live_digest(
                ((name, tensor.cpu()) for name, tensor in tower.state_dict().items()), adapter_states(tower.modules())
            ),
            "architecture_sha256": vision_architecture_sha256(tower.config),
            "preprocess": self._runner.preprocess.recipe(),
            "dtype": str(tower.dtype).removeprefix("torch."),
            "attention": tower.config._attn_implementation,
            "batch": "one pair per forward",
        }

    def get(
        self, pairs: Mapping[Hashable, Callable[[], list[np.ndarray]]]
    ) -> tuple[list[torch.Tensor], tuple[int, int], PairCounts]:
        """Return the features [tokens, width] of pairs, in order, the rows and columns of tokens, and the counts.

        Args:
            pairs: by a name that never stands for other frames, what returns the two resized frames.
        """
        self._forget_another_tower()
        counts, found = PairCounts(), {}
        for name, load in pairs.items():
            held = self._memory.get(name)
            found[name] = self._loaded(load(), counts) if held is None else held
            counts.from_memory += held is not None
        self._memory = found
        # All frames of a stream have one size, so any pair's grid is that of all; it is not worked out from pixels,
        # for those of known pairs are not read.
        return list(found.values()), self._grid, counts

    def _forget_another_tower(self) -> None:
        tower = self._runner.model.model.visual
        marks = tower.dtype, tower.config._attn_implementation, module_marks(tower)
        if marks != self._marks:
            self.clear()
            self._marks = marks

    def _loaded(self, frames: list[np.ndarray], counts: PairCounts) -> torch.Tensor:
        self._grid = self._runner.token_grid(frames[0])
        key = self._key(frames) if self._store is not None else None
        stored = self._stored(key)
        if stored is not None:
            counts.from_store += 1
            return stored.to(self._runner.device)
        with torch.autocast(self._runner.device.type, enabled=False):  # the recipe names the tower's own dtype
            features = self._runner.features(frames)
        counts.encoded += 1
        if self._store is not None and key is not None:
            try:
                self._store.put(key, features, recipe=self.recipe)
            except CacheStoreError as exc:
                logger.warning("a pair's features are not kept: %s", exc)
        return features

    def _stored(self, key: VideoKey | None) -> torch.Tensor | None:
        if self._store is None or key is None:
            return None
        try:
            found = self._store.get(key, recipe=self.recipe, on_stale="miss")
        except CacheStoreError as exc:
            logger.warning("a pair's features cannot be read and are computed again: %s", exc)
            return None
        return found if isinstance(found, torch.Tensor) else None

    def _key(self, frames: list[np.ndarray]) -> VideoKey:
        digest = hashlib.sha256(repr([frame.shape for frame in frames]).encode())
        for frame in frames:
            digest.update(np.ascontiguousarray(frame).data)
        return VideoKey(DATASET, digest.hexdigest(), len(frames), recipe_fingerprint(self.recipe)[:8])

    def clear(self) -> None:
        """Forget what is in memory, and what is known of the tower; the store keeps what it has."""
        self._memory, self._marks = {}, None
        self.__dict__.pop("recipe", None)
