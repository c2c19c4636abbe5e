"""Cached features beside the items of a LeRobot data set, found by episode and frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from cache_store import StepKey
from consumers.numeric_options import require_numbers, require_whole_numbers
from consumers.training.feature_reader import FeatureMissing, FeatureReader, OnStale, Recipe
from consumers.words import require_one_of
from pipeline.sources import data_set_name, lerobot_episode_name
from pipeline.sources.vlm_index import lerobot_vlm_idx

OnMiss = Literal["raise", "none"]
_TOLERANCE_S = 1e-4  # LeRobot's own


class CachedLeRobot(Dataset[dict[str, Any]]):
    """The items of `dataset`, each with the feature of its step as `item["vl_cache"]`.

    `dataset` is a `LeRobotDataset`, or any map-style data set whose items have `episode_index` and `frame_index`; it is
    asked for its items as it is, so leave cameras out of it if the features stand for them. A frame uses the feature of
    its VLM step, `vlm_reuse_count` frames sharing one, under the name that the build gave: `dataset_name` (the name of
    the data set's folder unless given) and the episode's index.

    With `delta_timestamps` (seconds, multiples of 1 / fps) `vl_cache` is the stack of the features at these offsets,
    and `vl_cache_is_pad` (bool `[offsets]`) says which of them lie outside of the episode; those have the first or the
    last frame's, as LeRobot pads. `fps` and `episode_lengths` are taken from `dataset.meta` unless given.

    `cache_root` is a folder or a URL. A missing feature raises; with `on_miss="none"`, `vl_cache` is None. `recipe` is
    compared as `FeatureStore.get` does: a recipe, or a function from an item to its recipe where instructions differ;
    every feature of an item is compared with that item's own.

    Raises:
        ValueError: `vlm_reuse_count` or `fps` is no number above 0, the offsets are no list of numbers, none, or one is
            no multiple of 1 / fps, or neither `dataset.meta` nor arguments tell what is needed; from an item: it has no
            `frame_index` (some sets of version 2.0: there it is the row's number in its episode) or one beyond the
            length that is known of its episode, or it has `dataset_index`, as those of several data sets in one.
        FeatureMissing, RecipeMismatch, StoreReadError: from an item.
    """

    def __init__(
        self,
        dataset: Any,
        cache_root: str | Path,
        *,
        dataset_name: str | None = None,
        vlm_reuse_count: int = 3,
        delta_timestamps: Sequence[float] | None = None,
        fps: float | None = None,
        episode_lengths: Mapping[int, int] | None = None,
        on_miss: OnMiss = "raise",
        recipe: Recipe | Callable[[Mapping[str, Any]], Recipe] | None = None,
        on_stale: OnStale = "error",
    ) -> None:
        require_one_of(OnMiss, on_miss=on_miss)
        require_whole_numbers(vlm_reuse_count=vlm_reuse_count)
        if vlm_reuse_count < 1:
            raise ValueError(f"vlm_reuse_count is {vlm_reuse_count}, and must be 1 or more")
        meta = getattr(dataset, "meta", None)
        if dataset_name is None:
            root = getattr(dataset, "root", None) or getattr(meta, "root", None)
            if root is None:
                raise ValueError("the data set has no root; give dataset_name, the name its features were built under")
            dataset_name = data_set_name(Path(root))
        self.dataset, self.dataset_name, self._vlm_reuse_count = dataset, dataset_name, vlm_reuse_count
        self._on_miss, self._recipe = on_miss, recipe
        self._reader = FeatureReader(cache_root, on_stale=on_stale)
        self._offsets: list[int] | None = None
        self._lengths = dict(episode_lengths or {})
        if delta_timestamps is not None:
            if fps is None or episode_lengths is None:
                if meta is None:
                    raise ValueError("delta_timestamps need fps and episode_lengths, since the data set has no meta")
                fps = meta.fps if fps is None else fps
                episode_lengths = _lengths(meta.episodes) if episode_lengths is None else episode_lengths
            self._offsets, self._lengths = _offsets(delta_timestamps, fps), dict(episode_lengths)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        items = [dict(item) for item in (fetch(indices) if fetch else [self.dataset[index] for index in indices])]
        unnamed = {"episode_index", "frame_index"} - items[0].keys()
        if unnamed:
            raise ValueError(
                f"items without {' and '.join(sorted(unnamed))} tell no frame; they have {sorted(items[0])}"
            )
        if "dataset_index" in items[0]:
            raise ValueError(
                "items with dataset_index are of several data sets, whose features have a name each; give each of them "
                "a CachedLeRobot of its own, and join those with torch.utils.data.ConcatDataset"
            )
        placed = [self._frames(int(item["episode_index"]), int(item["frame_index"])) for item in items]
        recipes = [self._recipe(item) if callable(self._recipe) else self._recipe for item in items]
        wanted = [(key, recipe) for recipe, (keys, _) in zip(recipes, placed, strict=True) for key in keys]
        features = iter(self._reader.read(wanted))
        for item, (keys, is_pad) in zip(items, placed, strict=True):
            item["vl_cache"] = self._feature(keys, [next(features) for _ in keys])
            if is_pad is not None:
                item["vl_cache_is_pad"] = torch.tensor(is_pad)
        return items

    def _frames(self, episode: int, frame: int) -> tuple[list[StepKey], list[bool] | None]:
        """The keys of an item's features, and which of them stand outside of the episode; None without offsets."""
        length = self._lengths.get(episode)
        if frame < 0 or (length is not None and frame >= length):
            told = "" if length is None else f", which is said to have {length}"
            raise ValueError(f"frame_index {frame} is no frame of episode {episode}{told}")
        if self._offsets is None:
            return [self._key(episode, frame)], None
        if length is None:
            raise ValueError(f"nothing tells how long episode {episode} is; give episode_lengths")
        last = length - 1
        meant = [frame + offset for offset in self._offsets]
        return [self._key(episode, max(0, min(last, at))) for at in meant], [at < 0 or at > last for at in meant]

    def _key(self, episode: int, frame: int) -> StepKey:
        vlm_idx = lerobot_vlm_idx(frame, vlm_reuse_count=self._vlm_reuse_count)
        return StepKey(lerobot_episode_name(self.dataset_name, episode), vlm_idx)

    def _feature(self, keys: Sequence[StepKey], features: Sequence[Any]) -> Any:
        missing = next((key for key, feature in zip(keys, features, strict=True) if feature is None), None)
        if missing is not None:
            if self._on_miss == "none":
                return None
            raise FeatureMissing(missing, self._reader.root)
        return features[0] if self._offsets is None else torch.stack(list(features))


def _offsets(delta_timestamps: Sequence[float], fps: float) -> list[int]:
    require_numbers(fps=fps)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps}, and must be above 0")
    if isinstance(delta_timestamps, str) or not isinstance(delta_timestamps, Sequence | np.ndarray):
        raise ValueError(f"delta_timestamps must be a list of seconds, got {delta_timestamps!r}")
    for delta_s in delta_timestamps:
        require_numbers(delta_timestamps=delta_s)
    if not len(delta_timestamps):
        raise ValueError("delta_timestamps are none; leave them out for the frame's own feature alone")
    offsets = [round(delta_s * fps) if math.isfinite(delta_s) else 0 for delta_s in delta_timestamps]
    for delta_s, offset in zip(delta_timestamps, offsets, strict=True):
        if not abs(delta_s - offset / fps) <= _TOLERANCE_S:
            raise ValueError(f"delta_timestamps: {delta_s} s is no multiple of 1/{fps:g} s")
    return offsets


def _lengths(episodes: Any) -> dict[int, int]:
    """The lengths that `meta.episodes` tells: by columns in version 3, a mapping by index in 2.1, a list in 2.0."""
    if hasattr(episodes, "column_names"):
        columns = (episodes[name] for name in ("episode_index", "length"))
        return {int(index): int(length) for index, length in zip(*columns, strict=True)}
    rows = episodes.items() if isinstance(episodes, Mapping) else ((row["episode_index"], row) for row in episodes)
    return {int(index): int(row["length"]) for index, row in rows}
