"""The stored features that fit one live tower: read, checked, and, if that is asked for, kept."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from cache_store import (
    FeatureStore,
    InexactFeature,
    RecipeMismatch,
    Record,
    VideoKey,
    canonical_dataset_name,
    int8,
    is_root,
    recipe_fingerprint,
    video_value,
)
from consumers.evaluation.errors import EvaluationError, FeatureMissing, FeatureUnfit
from consumers.evaluation.fitting import Doubts, Recipe, TowerIdentity
from consumers.words import require_one_of
from pipeline.sources import clip_suffix
from pipeline.sources import video_id as id_of
from pipeline.sources.video_ids import VIDEO_EXTENSIONS

OnMiss = Literal["live", "raise", "keep"]
OnStale = Literal["error", "miss", "use"]
_NO_RECIPE: Recipe = {"version": None}  # of nothing: what has a recipe is no match, what has none fits as ever
_AS_INT8 = {int8.RECIPE_FIELD: dict(int8.STORAGE)}


def open_store(store: FeatureStore | str | Path, on_miss: OnMiss) -> FeatureStore:
    """Return the store at a root, a folder or a URL.

    Raises:
        EvaluationError: there is none, and nothing is to be kept in one.
        StoreFormatError: a URL leads nowhere.
    """
    if isinstance(store, FeatureStore):
        return store
    # Opening a store makes its folder: a mistyped path would become an empty one, and every request a miss.
    if on_miss != "keep" and not is_root(store):
        raise EvaluationError(f"{store} is no folder; name the root of a feature store")
    return FeatureStore(store)


class StoredFeatures:
    """Features of one tower, by video. See `CachedVisionTower` for the arguments.

    Raises:
        EvaluationError: there is no store, and nothing is to be kept in one.
        ValueError: `on_miss` or `on_stale` is no word for it.
    """

    def __init__(
        self,
        store: FeatureStore | str | Path,
        identity: TowerIdentity,
        *,
        dataset: str,
        nframe: int,
        model_signature: str,
        recipe: Recipe | None = None,
        on_miss: OnMiss = "live",
        on_stale: OnStale = "error",
        cast: bool = False,
    ) -> None:
        require_one_of(OnMiss, on_miss=on_miss)
        require_one_of(OnStale, on_stale=on_stale)
        self.store, self.identity = open_store(store, on_miss), identity
        self.dataset, self.nframe, self.model_signature = dataset, nframe, model_signature
        self.on_miss, self._recipe, self._on_stale, self._cast = on_miss, recipe, on_stale, cast
        self.found_ids: dict[Hashable, str] = {}  # by what `find_video_id` was asked; it takes a look for each folder

    def key(self, video_id: str, *, dataset: str | None = None, nframe: int | None = None) -> VideoKey:
        """Return the key under which a build files a video; `dataset` may be any known alias."""
        name = canonical_dataset_name(dataset or self.dataset)
        return VideoKey(name, video_id, nframe or self.nframe, self.model_signature)

    def read(self, key: VideoKey) -> Mapping[str, Any] | None:
        """Return the value that fits the tower, with checked `vision_features` on the CPU; None for a miss.

        Raises:
            RecipeMismatch, InexactFeature, StoreReadError: as `FeatureStore.get`.
            FeatureMissing: a miss, where misses are errors.
            FeatureUnfit: what is stored cannot be this tower's.
        """
        value = self._fitting(key)
        if value is None:
            if self.on_miss == "raise":
                raise FeatureMissing(
                    f"{key.video_id} of {key.dataset} ({key.nframe} frames, model {key.model_signature}) has no "
                    f"feature in {self.store.location}; build it, or take on_miss='live'"
                )
            return None
        entry = value if isinstance(value, Mapping) else {"vision_features": value}
        features = entry.get("vision_features")
        if not isinstance(features, torch.Tensor):
            raise FeatureUnfit(f"{key.video_id}: the stored value holds no vision_features")
        return {**entry, "vision_features": self._checked(key, features)}

    def prefetch(self, *keys: VideoKey) -> None:
        """Begin to download what is soon to be read; nothing to do where features lie in a folder."""
        self.store.prefetch([(key, self._recipe) for key in keys], wait=False)

    def keep(self, key: VideoKey, features: torch.Tensor, **more: Any) -> None:
        """Store what the live tower gave, under a recipe that names the tower, with further fields of the value."""
        # A cut keeps the storage of what it was cut from.
        value = video_value(key, features.detach().cpu().contiguous().clone(), video_path=key.video_id)
        self.store.put(key, {**value, **more}, recipe=self.identity.recipe(key.nframe))

    def _fitting(self, key: VideoKey) -> object | None:
        if self._recipe is not None:
            return self._get(key, self._kept_recipe(key) or self._recipe)
        stale: tuple[Record, list[str]] | None = None
        best: tuple[Doubts, Recipe] | None = None
        is_int8 = False  # what has no recipe
        for record in self.store.records_of(key):
            if record.recipe is None:
                if best is None and not is_int8:
                    try:
                        return self.store.get(key, recipe=_NO_RECIPE, exact=True)
                    except (InexactFeature, RecipeMismatch) as exc:
                        # A mismatch is with what a build published in this moment, which has not been compared.
                        is_int8 = isinstance(exc, InexactFeature)
                continue
            lines = self.identity.differences_to(record.recipe, is_cast=self._cast)
            if lines:
                stale = stale or (record, lines)
                continue
            doubts = self.identity.doubts_about(record.recipe)
            if best is None or doubts < best[0]:
                best = doubts, record.recipe
            if not any(doubts):
                break
        if best is not None:
            self.identity.tell_what_may_round_otherwise(best[1])
            return self._get(key, best[1])
        if is_int8:
            return self._get(key, {**_NO_RECIPE, **_AS_INT8})
        if stale is not None and self._on_stale == "error":
            raise self._mismatch(key, *stale)
        if stale is not None and self._on_stale == "use":
            return self._get(key, None)
        # A miss, which the store is to count. What a build publishes in this moment has not been compared.
        return None if stale is not None else self.store.get(key, recipe=_NO_RECIPE, on_stale="miss", exact=True)

    def _get(self, key: VideoKey, recipe: Recipe | None) -> object | None:
        try:
            return self.store.get(key, recipe=recipe, on_stale=self._on_stale, exact=not self._cast)
        except InexactFeature as exc:
            advice = "allow the cast with cast=True, or build the exact ones beside it, without --store-dtype int8"
            raise InexactFeature(exc.path, exc.loss, advice=advice) from exc

    def _kept_recipe(self, key: VideoKey) -> Recipe | None:
        """Return the recipe of int8, if a cast is allowed, or of a kept miss, where it is here instead of the asked."""
        assert self._recipe is not None
        wanted, others = recipe_fingerprint(self._recipe), set()
        for record in self.store.records_of(key):
            if record.recipe_fingerprint == wanted:
                return None
            others.add(record.recipe_fingerprint)
        if not others:  # the tower's weights are digested only where that tells something
            return None
        as_int8 = {**self._recipe, **_AS_INT8}
        if self._cast and recipe_fingerprint(as_int8) in others:
            return as_int8
        kept = self.identity.recipe(key.nframe)
        if recipe_fingerprint(kept) in others:
            return kept
        # int8 that has no recipe fits none of exact features.
        return as_int8 if self._cast and None in others else None

    def _mismatch(self, key: VideoKey, record: Record, lines: list[str]) -> RecipeMismatch:
        return RecipeMismatch(
            path=f"{self.store.location}/{record.name}",
            found=record.recipe_fingerprint or "",
            wanted=recipe_fingerprint(self.identity.recipe(key.nframe)),
            differences=lines,
            advice="it is not what this model would compute; build it with this model (a second recipe of a data set "
            "gets a folder of its own), name the folder that the model was loaded from as checkpoint=, or take "
            "on_stale='miss' to compute live",
        )

    def _checked(self, key: VideoKey, features: torch.Tensor) -> torch.Tensor:
        facts = self.identity.facts
        if features.dim() != facts.dimensions:
            raise FeatureUnfit(
                f"{key.video_id}: the stored feature has the shape {list(features.shape)}, and this tower gives "
                f"{facts.dimensions} dimensions"
            )
        *_, tokens, width = features.shape
        is_other = facts.tokens not in (None, tokens) or facts.width not in (None, width)
        if is_other:
            raise FeatureUnfit(
                f"{key.video_id}: the stored feature has the shape {list(features.shape)}, and this tower gives "
                f"{facts.tokens or 'any number of'} tokens of width {facts.width or 'unknown'}"
            )
        if features.dtype != facts.dtype and not self._cast:
            raise FeatureUnfit(
                f"{key.video_id} is stored as {features.dtype}, and the tower computes in {facts.dtype}: the numbers "
                "would not be the tower's; build with its --dtype, or allow the cast with cast=True"
            )
        return features.to(facts.dtype)


def find_video_id(stored: StoredFeatures | None, item: Mapping[str, Any], dataset: str) -> str:
    """Return the id of a video's item: its own `video_id`, else that of its path in the store; with bounds a clip's.

    Where stems repeat in a data set its ids are relative paths, so that of the path which names most folders is taken,
    links to folders followed or not, unless it is that of another file that lies there. What was kept under the whole
    path goes before a stem alone. Without any in the store it is the stem; where misses are kept, the whole path, since
    of an empty store nobody can tell which folder is the data set's.
    """
    start_s, end_s = item.get("start"), item.get("end")
    bounds = clip_suffix(start_s, end_s)
    if item.get("video_id") is not None:
        named = str(item["video_id"])
        return named if named.endswith(bounds) else named + bounds
    path = Path(item["value"]).absolute()
    stem = id_of(path.name) + bounds
    if stored is None:
        return stem

    def is_there(video_id: str) -> bool:
        return any(True for _ in stored.store.records_of(stored.key(video_id, dataset=dataset)))

    asked = (dataset, path, start_s, end_s)
    if asked not in stored.found_ids:
        real = path.parent.resolve() / path.name
        # `..` leads elsewhere behind a link than by its name.
        paths = [real] if ".." in path.parts or real == path else [path, real]
        # The longest first: `b/a/001` may be there beside the `a/001` with which its path ends, too.
        ids = {_id_below(root, one): None for one in paths for root in one.parents}
        found = next((one for one in sorted(ids, key=_num_folders, reverse=True) if is_there(one + bounds)), None)
        kept = next((str(one) + bounds for one in paths if is_there(str(one) + bounds)), None)
        if found is None or (kept is not None and _num_folders(found) == 0):
            if kept is None:
                return f"{paths[0]}{bounds}" if stored.on_miss == "keep" else stem
            stored.found_ids[asked] = kept
        elif (other := next(filter(None, (_id_of_another(one, found) for one in paths)), None)) is not None:
            return other + bounds
        else:
            stored.found_ids[asked] = found + bounds
    return stored.found_ids[asked]


def _id_below(root: Path, path: Path) -> str:
    return id_of(path.relative_to(root).as_posix(), repeated=frozenset([id_of(path.name)]))


def _num_folders(video_id: str) -> int:
    return video_id.count("/")


def _id_of_another(path: Path, video_id: str) -> str | None:
    """Return the id of `path` below the folder below which another file has `video_id`; None without such a file.

    A data set that has `a/001.mp4` and `b/a/001.mp4` may have the feature of the first only.
    """
    root = next((root for root in path.parents if _id_below(root, path) == video_id), None)
    if root is None:
        return None
    for above in root.parents:
        for other in _files_of_stem(above / path.parent.relative_to(root), id_of(path.name)):
            if os.path.exists(other) and not (os.path.exists(path) and os.path.samefile(path, other)):
                return _id_below(above, path)
    return None


def _files_of_stem(folder: Path, stem: str) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if name.startswith(stem) and id_of(name) == stem]
    except OSError:  # a folder that may be entered need not be one that may be listed
        names = [stem, *(f"{stem}.{extension}" for extension in VIDEO_EXTENSIONS)]
    return [folder / name for name in names]
