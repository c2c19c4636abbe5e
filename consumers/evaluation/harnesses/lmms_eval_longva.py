"""lmms-eval's LongVA with a vision cache in front of its tower; importable where lmms-eval and longva are installed.

lmms_eval --model longva_cached --tasks videomme --batch_size 1 --model_args \
    pretrained=lmms-lab/LongVA-7B,cache_dir=/cache/longva,conv_template=qwen_1_5,model_name=llava_qwen,max_frames_num=128
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.models.simple.longva import LongVA

from consumers.evaluation.cached_tower import CachedVisionTower, Request
from consumers.evaluation.errors import EvaluationError
from consumers.evaluation.harnesses.misses import MissTeller
from consumers.evaluation.longva import print_block
from consumers.evaluation.longva_backends import checkpoint_folder
from consumers.evaluation.stored_features import find_video_id


class LongVACached(LongVA):  # type: ignore[misc]  # lmms-eval has no types
    """LongVA whose videos are neither decoded nor encoded where the cache holds them.

    Args:
        cache_dir: the root of a store that was built with `--sampling longva`, lmms-eval's own rule with decord, and
            `--nframe` of `max_frames_num`.
        on_miss, on_stale, echo: as in `CachedVisionTower`.
        options: those of lmms-eval's `longva`.

    Raises:
        EvaluationError: there is no store; or another decoder than decord is asked for, whose frames are others.
    """

    def __init__(
        self, cache_dir: str, on_miss: str = "live", on_stale: str = "error", echo: float = 0.0, **options: Any
    ) -> None:
        if options.setdefault("video_decode_backend", "decord") != "decord":
            raise EvaluationError("longva_cached reads what video_decode_backend=decord samples, and no other's frames")
        super().__init__(**options)
        self._cache = CachedVisionTower(
            self.model,
            cache_dir,
            dataset="",  # every request names its own
            nframe=self.max_frames_num,
            checkpoint=checkpoint_folder(self.pretrained),
            sampling="longva",
            on_miss=on_miss,  # type: ignore[arg-type]  # words of a command line; checked there
            on_stale=on_stale,  # type: ignore[arg-type]
            echo=float(echo),
        )
        self._misses = MissTeller(self._cache.stored.store, self._cache.statistics)
        self._image_processor: Any = _Preprocessor(vars(self)["_image_processor"])
        self._request: Request | None = None
        self._failure: Exception | None = None
        weakref.finalize(self, print_block, self._cache.statistics)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests one by one, in their order; each video's in a request to the cache."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> str:
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if not visuals or not isinstance(visuals[0], str):
            return str(super().generate_until([request])[0])
        video_id = find_video_id(self._cache.stored, {"value": visuals[0]}, task)
        self._failure = None
        try:
            with self._cache.request(video_id, dataset=task) as self._request:
                (answer,) = super().generate_until([request])
        finally:
            self._request = None
        if self._failure is not None:
            # lmms-eval logs it, and asks the model without the video.
            raise EvaluationError(f"{visuals[0]} cannot be read") from self._failure
        self._misses.look(task, video_id, self.max_frames_num)
        return str(answer)

    def load_video(self, video_path: Any, max_frames_num: int) -> Any:
        """Return what lmms-eval hands to the image processor: pixels that are ready, on a hit a stand-in for them."""
        read = super().load_video

        def live() -> torch.Tensor:
            frames = read(video_path, max_frames_num)
            pixels: torch.Tensor = self._image_processor.preprocess(frames, return_tensors="pt")["pixel_values"]
            return pixels

        if self._request is None:
            return read(video_path, max_frames_num)
        try:
            return _Ready(self._request.pixels(live))
        except Exception as exc:
            self._failure = exc
            raise


class _Ready:
    """Pixels that need no preprocessing."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels


class _Preprocessor:
    """An image processor that lets ready pixels pass."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def preprocess(self, images: Any, **options: Any) -> Any:
        if isinstance(images, _Ready):
            return {"pixel_values": images.pixels}
        return self._processor.preprocess(images, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)
