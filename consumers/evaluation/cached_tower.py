"""A cache in front of a vision tower, request by request: the tower answers from the store, the rest runs as always."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from cache_store import FeatureStore, VideoKey
from cache_store import model_signature as signature_of
from consumers.evaluation.errors import CacheBypassed, EchoDifference, EvaluationError, FeatureMissing
from consumers.evaluation.fitting import Recipe, TowerIdentity
from consumers.evaluation.live_tower import LiveTower, find_tower, require_own_dtype
from consumers.evaluation.statistics import CacheStatistics
from consumers.evaluation.stored_features import OnMiss, OnStale, StoredFeatures
from consumers.evaluation.switch import switch_of
from consumers.words import require_one_of
from pipeline.encoders.live_weights import module_marks

OnDifference = Literal["raise", "count"]


class CachedVisionTower:
    """The vision tower of `model`, which answers from `store` while a request is open.

    The model is not changed but for the length of a request, and any number of caches, threads, asyncio tasks and
    nested requests may share it: each thread or task gets the answers of its own innermost request. Run the model in
    the one that opened it. Other weights, another dtype or layer are noticed at the next request, but for what is
    written through a parameter's `.data`, which torch does not count.

    Args:
        model: LongVA, any other model of LLaVA's code, or a LLaVA, LLaVA-NeXT, LLaVA-NeXT-Video or LLaVA-OneVision of
            transformers.
        store: a feature store or its root, a folder or a URL.
        dataset: canonical name or any known alias; a request may name another.
        nframe: as the build was told; part of a feature's name.
        model_signature: by default that of `mm_vision_tower` and `mm_vision_select_layer` in the model's config.
        recipe: what the features must be made by. By default their own recipes are held against the tower: weights,
            layer, feature, dtype, and `sampling` and `preprocess` if they are given. Of several that fit, the
            first of those that leave least open is taken.
        checkpoint: the folder from which the model was loaded. Needed where it was loaded in another dtype than it is
            stored in, because weights are compared as stored.
        on_miss: compute live, raise `FeatureMissing`, or compute live and keep the feature in the store.
        on_stale: what a feature of another recipe means: `RecipeMismatch`, a miss, or use it all the same.
        cast: allow features of another dtype than the tower computes in, and int8.
        echo: share of hits, 0 to 1, that are computed live too; which ones depends on the video's id alone.
        on_difference: what an echo with other bits means: `EchoDifference`, or only a count.
        statistics: shared by several caches; by default a new one.

    Raises:
        NoVisionTower: the model has none.
        EvaluationError: there is no store, no folder `checkpoint`, or no signature.
        ValueError: `on_miss`, `on_stale` or `on_difference` is no word for it, or `echo` no share.
    """

    def __init__(
        self,
        model: Any,
        store: FeatureStore | str | Path,
        *,
        dataset: str,
        nframe: int = 128,
        model_signature: str | None = None,
        recipe: Recipe | None = None,
        checkpoint: str | Path | None = None,
        sampling: str | None = None,
        preprocess: Mapping[str, Any] | None = None,
        on_miss: OnMiss = "live",
        on_stale: OnStale = "error",
        cast: bool = False,
        echo: float = 0.0,
        on_difference: OnDifference = "raise",
        statistics: CacheStatistics | None = None,
    ) -> None:
        require_echo(echo, on_difference)
        if checkpoint is not None and not Path(checkpoint).is_dir():
            raise EvaluationError(f"checkpoint={checkpoint} is no folder; name the one that the model was loaded from")
        self.tower: LiveTower = find_tower(model)
        module = self.tower.module
        identity = TowerIdentity(
            module.state_dict,
            lambda: module_marks(module),
            lambda: self.tower.facts,
            preprocess=preprocess,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            sampling=sampling,
        )
        self.model_signature = model_signature or _signature_in_config(model)
        self.stored = StoredFeatures(
            store,
            identity,
            dataset=dataset,
            nframe=nframe,
            model_signature=self.model_signature,
            recipe=recipe,
            on_miss=on_miss,
            on_stale=on_stale,
            cast=cast,
        )
        self.statistics = CacheStatistics() if statistics is None else statistics
        self._echo, self._on_difference = echo, on_difference
        self._switch = switch_of(self.tower.module)

    @contextmanager
    def request(self, *video_ids: str, dataset: str | None = None, nframe: int | None = None) -> Iterator[Request]:
        """Let the tower answer from the store in this thread; several videos come one after another, as in a batch.

        A clip's id has its bounds, `name@<start>-<end>`. A request is a hit if all its videos are stored, else all of
        them are computed live. The tower may be called more than once, on the same images only: of a prompt with an
        image and a video nobody could tell which is meant. Its own forward is back afterwards, also after an error.

        Raises:
            RecipeMismatch, InexactFeature, FeatureMissing, FeatureUnfit, StoreReadError: before the body runs.
            EvaluationError: no video is named; or, in the body, from the tower's forward, the images are others than
                before, `torch.autocast` is on, or what is to be kept cannot be.
            EchoDifference: in the body, from the tower's forward.
            CacheBypassed: after it, if stand-in pixels were handed out and the tower was never called.
        """
        if not video_ids:
            raise EvaluationError("a request names at least one video")
        keys = [self.stored.key(video_id, dataset=dataset, nframe=nframe) for video_id in video_ids]
        started = time.perf_counter()
        try:
            features = self._read(keys)
        except FeatureMissing:
            self.statistics.add(misses=1)
            raise
        self.statistics.add(read_s=time.perf_counter() - started)
        is_echo = features is not None and any(is_chosen(key.video_id, self._echo) for key in keys)
        self.statistics.add(hits=features is not None, misses=features is None)
        request = Request(self, keys, features, self.statistics, is_echo=is_echo)
        with self._switch.answering(self.tower.module, request.answer):
            yield request
        request.check_asked()

    @contextmanager
    def live(self, statistics: CacheStatistics) -> Iterator[Request]:
        """Compute everything, as if there were no cache, and note in `statistics` what that takes."""
        request = Request(self, (), None, statistics, is_echo=False)
        with self._switch.answering(self.tower.module, request.answer):
            yield request

    def _read(self, keys: Sequence[VideoKey]) -> torch.Tensor | None:
        found = []
        for key in keys:
            value = self.stored.read(key)
            if value is None:
                return None
            found.append(value)
        parts = [value["vision_features"] for value in found]
        features = torch.cat(parts) if len(parts) > 1 else parts[0]
        longest = max(found, key=lambda value: len(value["vision_features"]))
        strides = _strides_of(longest.get("strides"), len(longest["vision_features"]), len(features))
        if strides is None or features.stride() == strides:
            return features
        # A linear layer may round otherwise for another order in memory.
        return torch.empty_strided(features.shape, strides, dtype=features.dtype).copy_(features)

    def original(self, *args: Any, **options: Any) -> Any:
        """Call the tower's own forward, whatever request is open."""
        return self._switch.original(self.tower.module, *args, **options)

    def compare(self, keys: Sequence[VideoKey], stored: torch.Tensor, live: torch.Tensor) -> None:
        """Count an echo.

        Raises:
            EchoDifference: the bits differ, and that is an error.
        """
        what = difference_of(stored, live)
        self.statistics.add(echoes=1, echo_differences=what is not None)
        if what is not None and self._on_difference == "raise":
            raise EchoDifference(", ".join(key.video_id for key in keys), what)


class Request:
    """One open request; see `CachedVisionTower.request`."""

    def __init__(
        self,
        cache: CachedVisionTower,
        keys: Sequence[VideoKey],
        features: torch.Tensor | None,
        statistics: CacheStatistics,
        *,
        is_echo: bool,
    ) -> None:
        self._cache, self._keys, self._features, self._is_echo = cache, keys, features, is_echo
        self._statistics = statistics
        self._gave_stand_in = False
        self._images: Any = None  # what the tower was called on
        self._versions: list[int] = []  # of it, then

    @property
    def is_hit(self) -> bool:
        """Whether the tower answers from the store."""
        return self._features is not None

    @property
    def features(self) -> torch.Tensor | None:
        """The stored features `[n, tokens, width]` on the CPU; None on a miss."""
        return self._features

    def pixels(self, live: Callable[[], torch.Tensor], *, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return what the model is to be given, `[n, 3, height, width]`: what `live` decodes, or a stand-in on a hit.

        The stand-in, in the tower's dtype unless `dtype` says otherwise, takes no memory, and `live` is not called for
        it.
        """
        if self._features is None or self._is_echo:
            started = time.perf_counter()
            pixels = live()
            self._statistics.add(pixels_s=time.perf_counter() - started)
            return pixels
        self._gave_stand_in = True
        tower = self._cache.tower
        device = next(tower.module.parameters()).device
        one = torch.zeros((), dtype=dtype or tower.facts.dtype, device=device)
        return one.expand(len(self._features), 3, *tower.facts.image_size)

    def answer(self, *args: Any, **options: Any) -> Any:
        """Return what the tower is to return for this call."""
        tower = self._cache.tower
        images = tower.images_of(*args, **options)
        if self._keys:
            require_own_dtype(next(tower.module.parameters()).device)
            self._require_same(images)
        if self._features is None:
            live = self._live(*args, **options)
            if self._keys and self._cache.stored.on_miss == "keep":
                self._keep(tower.features_in(live))
            return live
        answer = tower.answer(self._features, images)
        if self._is_echo:
            live = self._live(*args, **options)
            self._cache.compare(self._keys, tower.features_in(answer), tower.features_in(live))
        return answer

    def check_asked(self) -> None:
        """Check that who was given a stand-in has asked the tower.

        Raises:
            CacheBypassed: it has not.
        """
        if self._gave_stand_in and self._images is None:
            named = ", ".join(key.video_id for key in self._keys)
            raise CacheBypassed(
                f"{named}: stand-in pixels were handed out, and the vision tower was never called in this thread; what "
                "the model answered is not about the video"
            )

    def _require_same(self, images: Any) -> None:
        is_first = self._images is None
        if not is_first and (_versions(self._images) != self._versions or not _are_equal(images, self._images)):
            named = ", ".join(key.video_id for key in self._keys)
            raise EvaluationError(
                f"{named}: the vision tower is called on other images than before in one request; give each video a "
                "request of its own, and ask about an image and a video together without the cache"
            )
        self._images, self._versions = images, _versions(images)

    def _keep(self, features: torch.Tensor) -> None:
        if len(self._keys) != 1:
            raise EvaluationError("several videos in one request cannot be kept apart; ask for one at a time")
        if features.dtype != self._cache.tower.facts.dtype:
            raise EvaluationError(
                f"the tower computed in {self._cache.tower.facts.dtype} and gave {features.dtype}; to be kept, "
                "features must come as they were computed: pass pixels in the tower's dtype"
            )
        self._cache.stored.keep(self._keys[0], features, strides=list(features.stride()))

    def _live(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        live = self._cache.original(*args, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._statistics.add(live_s=time.perf_counter() - started)
        return live


def _signature_in_config(model: Any) -> str:
    config = getattr(model, "config", None)
    tower, layer = getattr(config, "mm_vision_tower", None), getattr(config, "mm_vision_select_layer", -2)
    if tower is None:
        raise EvaluationError(
            f"{type(model).__name__} names no mm_vision_tower; pass model_signature=, for a build from a folder "
            "cache_store.model_signature(<its name>, <layer>)"
        )
    return signature_of(str(tower), int(layer))


def _strides_of(strides: Sequence[int] | None, rows: int, wanted: int) -> tuple[int, ...] | None:
    """Return the strides of `wanted` rows where those of `rows` are known; None where they are not, as of a single row.

    What has the rows within it in memory is further apart as there are more of them.
    """
    if strides is None or rows == wanted:
        return None if strides is None else tuple(strides)
    if rows == 1:
        return None
    return tuple(one * wanted // rows if one > strides[0] else one for one in strides)


def _versions(images: Any) -> list[int]:
    """Return how often each image was written to, as far as torch counts it: a buffer may have been filled anew."""
    given = images if isinstance(images, list) else [images]
    return [one._version for one in given if isinstance(one, torch.Tensor) and not one.is_inference()]


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other.to(one.device, one.dtype)))
    is_both = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
    return is_both and all(map(_are_equal, one, other))


def require_echo(echo: float, on_difference: OnDifference) -> None:
    """Refuse a share of echoes that is none, 10 for a tenth say, and a mistyped word.

    Raises:
        ValueError: it is named.
    """
    require_one_of(OnDifference, on_difference=on_difference)
    if not 0 <= echo <= 1:
        raise ValueError(f"echo is {echo}; give a share of the hits, from 0 to 1")


def is_chosen(video_id: str, share: float) -> bool:
    """Tell whether a video is among the share: equal in every run and process."""
    digest = hashlib.md5(video_id.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def difference_of(stored: torch.Tensor, live: torch.Tensor) -> str | None:
    """Return in words how bits differ; None if they do not."""
    one, other = stored.cpu().contiguous(), live.detach().cpu().contiguous()
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return f"{other.dtype} {list(other.shape)} instead of {one.dtype} {list(one.shape)}"
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return None
    differing = int((one != other).sum())
    largest = float((one.double() - other.double()).abs().max())
    return f"{differing:,} of {one.numel():,} values differ, by {largest:.3g} at most"
