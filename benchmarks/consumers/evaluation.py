"""Rows `evaluate`: questions a second with and without the cache, against what Amdahl's law leaves to gain.

The model is the small LongVA, which decodes and encodes videos, and answers by the logits of its option letters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.consumers.scale import Scale
from benchmarks.decode_files import Generated, generate
from benchmarks.store.report import Line, Row, rate_lines
from benchmarks.store.timing import median, seconds_of
from cache_store import FeatureStore, VideoKey, video_value
from consumers.evaluation import LongVA_Cached
from pipeline.encoders.longva import longva_spec
from pipeline.recipe import video_recipe
from pipeline.vision import SamplingRule
from pipeline.vision.decoding import decode_video

DATASET, DTYPE, LETTERS = "Video-MME", "float32", "ABCD"
UNCACHED, CACHED, BOUND = "uncached", "LongVA_Cached, every question a hit", "without tower, decoding and preprocessing"


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Questions a second, and the share of the possible gain.

    Raises:
        RuntimeError: cached and uncached logits differ, or a question missed.
    """
    videos = _videos(folder / "videos", scale)
    _build(folder / "store", videos, scale)
    options: dict[str, Any] = {"nframe": scale.nframe, "dtype": DTYPE}
    live = LongVA_Cached("small", None, **options)
    cached = LongVA_Cached("small", folder / "store", on_miss="raise", **options)
    _check_equal(live, cached, videos)
    removable = _Seconds()
    taken: dict[str, list[float]] = {UNCACHED: [], CACHED: []}
    gains = []
    with _timed(live, removable):
        for _ in range(scale.rounds):
            removable.total_s = 0.0
            uncached_s = seconds_of(lambda: _ask(live, videos, scale))
            cached_s = seconds_of(lambda: _ask(cached, videos, scale))
            taken[UNCACHED].append(uncached_s)
            taken[CACHED].append(cached_s)
            taken.setdefault(BOUND, []).append(uncached_s - removable.total_s)
            gains.append((uncached_s - cached_s) / removable.total_s)
    if cached.statistics.misses:
        raise RuntimeError("a question missed the cache")
    cached.close()
    return _rows(taken, gains, scale)


def _rows(taken: dict[str, list[float]], gains: list[float], scale: Scale) -> list[Row]:
    questions = scale.videos * scale.questions
    rates = {name: [questions / seconds for seconds in taken[name]] for name in (UNCACHED, BOUND, CACHED)}
    what = f"{scale.questions} questions about each of {scale.videos} videos, {scale.nframe} frames each"
    remark = (
        f"The small LongVA in {DTYPE}, one torch thread, H.264 of {scale.video_size[0]} x {scale.video_size[1]}, "
        f"{scale.rounds} rounds in turns; logits are bitwise equal. The bound is the uncached time of the same round "
        "less what its tower, decoding and preprocessing took."
    )
    left = f"What can be saved is {1 - median(taken[BOUND]) / median(taken[UNCACHED]):.1%} of the uncached time."
    gain = Line(CACHED, median(gains), least_value=0.98, note=f"{min(gains):.3f} to {max(gains):.3f} in the rounds")
    return [
        Row("evaluate", what, "questions/s", rate_lines(rates, base=UNCACHED), [remark]),
        Row("evaluate-gain", "cached evaluation, of the time that can be saved at all", "share saved", [gain], [left]),
    ]


def _videos(folder: Path, scale: Scale) -> list[Path]:
    width, height = scale.video_size
    folder.mkdir()
    return [
        generate(folder, Generated(f"video_{number}.mp4", "libx264", scale.video_frames, width, height, 60))
        for number in range(scale.videos)
    ]


def _build(root: Path, videos: list[Path], scale: Scale) -> None:
    """Build the cache, without Ray: the very steps of the build."""
    spec, rule = longva_spec("small", dtype=DTYPE), SamplingRule.parse("source")
    tower, recipe = spec.load("cpu"), video_recipe(spec, nframe=scale.nframe, sampling=rule.name)
    with FeatureStore(root) as store:
        for video in videos:
            decoded = decode_video(video, sampling=rule, nframe=scale.nframe, preprocess=spec.preprocess)
            key = VideoKey(DATASET, video.stem, scale.nframe, spec.model_signature)
            store.put(key, video_value(key, tower.encode(decoded.pixels), video_path=video.name), recipe=recipe)


def _ask(longva: LongVA_Cached, videos: list[Path], scale: Scale) -> None:
    for number in range(scale.questions):
        for video in videos:
            longva.letter_logits(_question(video, number), LETTERS, DATASET)


def _question(video: Path, number: int) -> list[dict[str, Any]]:
    text = f"Question {number}: what happens in this video?\nA. nothing\nB. little\nC. much\nD. all"
    return [{"type": "video", "value": str(video)}, {"type": "text", "value": text}]


def _check_equal(live: LongVA_Cached, cached: LongVA_Cached, videos: list[Path]) -> None:
    for video in videos:
        question = _question(video, 0)
        one, other = (longva.letter_logits(question, LETTERS, DATASET) for longva in (live, cached))
        if not torch.equal(one, other):
            raise RuntimeError(f"{video.name}: cached and uncached logits differ")


class _Seconds:
    """Time spent in what a cache makes unnecessary."""

    total_s = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.total_s += time.perf_counter() - start_s

        return timed


@contextmanager
def _timed(longva: LongVA_Cached, removable: _Seconds) -> Iterator[None]:
    """Count what the tower, decoding and preprocessing of a model take."""
    tower, backend = longva.model.get_vision_tower(), longva.backend
    tower.forward = removable.around(tower.forward)
    longva.backend = replace(backend, load_video=removable.around(backend.load_video))
    try:
        yield
    finally:
        del tower.forward
        longva.backend = backend
