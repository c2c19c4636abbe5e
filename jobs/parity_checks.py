"""The checks that a cached feature is the live one, on one model and one video."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from cache_store import FeatureStore, VideoKey, video_value
from consumers.evaluation import EvaluationError, LongVA_Cached
from consumers.evaluation.longva_backends import require_backend
from pipeline.encoders import VideoEncoderSpec
from pipeline.errors import MediaError
from pipeline.recipe import video_recipe
from pipeline.sources import video_id
from pipeline.vision import SamplingRule
from pipeline.vision.decoding import DecodedVideo, decode_video
from pipeline.vision.open_video import READERS, OpenVideo, readers_in_order

Outcome = Literal["passed", "failed", "skipped"]
DATASET = "check"


@dataclass(frozen=True)
class Check:
    """One check, and what it came to."""

    name: str
    outcome: Outcome
    found: str


@dataclass(frozen=True, eq=False)
class Subject:
    """What is checked, and the store that a check may write to."""

    model: str
    spec: VideoEncoderSpec
    video: Path
    nframe: int
    sampling: SamplingRule
    dtype: str
    device: str
    root: Path

    @cached_property
    def decoded(self) -> DecodedVideo:
        """The video's frames as a build decodes them. Raises MediaError."""
        options: dict[str, Any] = {"nframe": self.nframe, "preprocess": self.spec.preprocess}
        return decode_video(self.video, sampling=self.sampling, **options)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of a build of it."""
        return video_recipe(self.spec, nframe=self.nframe, sampling=self.sampling.name)

    @cached_property
    def features(self) -> torch.Tensor:
        """The video's features as a build encodes them."""
        return self.spec.load(self.device).encode(self.decoded.pixels)

    @property
    def key(self) -> VideoKey:
        """What the feature is called."""
        return VideoKey(DATASET, video_id(self.video.name), self.nframe, self.spec.model_signature)


def run_checks(subject: Subject) -> Iterator[Check]:
    """Yield each check when it is done; one that raises has failed."""
    for name, check in _CHECKS.items():
        try:
            outcome, found = check(subject)
        except Exception as exc:  # noqa: BLE001 - what a check meets is what it is to tell
            outcome, found = "failed", f"{type(exc).__name__}: {exc}"
        yield Check(name, outcome, found)


_Found = tuple[Outcome, str]


def _decoders(subject: Subject) -> _Found:
    video = OpenVideo(subject.video)
    wanted = sorted(set(subject.decoded.frame_indices))
    names = readers_in_order(video.survey)
    frames: dict[str, list[np.ndarray]] = {}
    refused = []
    for name in names:
        try:
            frames[name] = list(READERS[name](subject.video, video.survey).frames(wanted))
        except MediaError as exc:
            refused.append(f"{name}: {exc}")
    if len(frames) < 2:
        return "skipped", f"one decoder reads this file: {', '.join(frames)}; {'; '.join(refused)}"
    one, other = frames.values()
    differing = [i for i, (a, b) in zip(wanted, zip(one, other, strict=True), strict=True) if not np.array_equal(a, b)]
    if not differing:
        return "passed", f"{' and '.join(frames)} give the same bits in all {len(wanted)} sampled frames"
    what = (
        f"{len(differing)} of {len(wanted)} frames differ between {' and '.join(frames)}, the first is {differing[0]}"
    )
    if names[0] == "decord":
        return "skipped", f"{what}; decord's are taken for such files"
    return "failed", what


def _preprocessing(subject: Subject) -> _Found:
    preprocess: Any = subject.spec.preprocess
    reader = OpenVideo(subject.video)
    wanted = sorted(set(subject.decoded.frame_indices))[:8]
    frames, _ = reader.first_that_succeeds(lambda one: list(one.frames(wanted)))
    # Left to itself, the processor takes one, three or four rows for channels.
    whole = preprocess.built.preprocess(frames, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    halves = preprocess.table()(torch.from_numpy(np.stack([preprocess(frame) for frame in frames])))
    return _same(halves, whole, f"{len(frames)} frames through the processor itself, and in the build's two halves")


def _tower(subject: Subject) -> _Found:
    again = subject.spec.load(subject.device).encode(subject.decoded.pixels)
    return _same(subject.features, again, f"{list(again.shape)} {again.dtype} from the tower loaded twice")


def _store(subject: Subject) -> _Found:
    value = video_value(subject.key, subject.features, video_path=subject.video.name)
    digests = []
    with FeatureStore(subject.root) as store:
        for _ in range(2):
            path = store.put(subject.key, value, recipe=subject.recipe)
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        read = cast(dict[str, Any], store.get(subject.key, recipe=subject.recipe))["vision_features"]
        plain = torch.load(path, weights_only=True)["vision_features"]
        problems = store.verify().problems
    if digests[0] != digests[1] or problems:
        return "failed", f"SHA-256 {digests[0]} and {digests[1]}, {len(problems)} problems found by verify"
    if not torch.equal(_bits(read), _bits(plain)):
        return "failed", "the store and torch.load read different bits"
    return _same(read, subject.features, f"put, get and torch.load; the file's SHA-256 is {digests[0]}")


def _answers(subject: Subject) -> _Found:
    if subject.spec.family != "longva":
        return "skipped", f"{subject.spec.family} is a tower without a language model"
    try:
        require_backend(subject.model)
    except EvaluationError as exc:
        return "skipped", str(exc)
    message = [
        {"type": "video", "value": str(subject.video), "video_id": subject.key.video_id},
        {"type": "text", "value": "What is shown?\nA. a person\nB. an animal\nC. a vehicle\nD. none of these"},
    ]
    _ = subject.features  # a video that gives none is why this fails, and not the store without them
    longva = LongVA_Cached(
        subject.model,
        subject.root,
        nframe=subject.nframe,
        dataset=DATASET,
        sampling=subject.sampling.name,
        dtype=subject.dtype,
        on_miss="raise",
        echo=1.0,
        on_difference="count",
    )
    try:
        return _compared(longva, message)
    finally:
        # Its statistics are printed, and results have stdout for themselves.
        with redirect_stdout(sys.stderr):
            longva.close()


def _compared(longva: LongVA_Cached, message: list[dict[str, str]]) -> _Found:
    cached = longva.letter_logits(message, "ABCD")
    live = longva.letter_logits(message, "ABCD", live=longva.statistics)
    if longva.statistics.hits != 1 or longva.statistics.echo_differences:
        return "failed", f"the tower in the model gives other features than the build: {longva.statistics}"
    return _same(cached, live, "logits of four letters with the cache and without it, one hit, no miss")


_CHECKS: dict[str, Callable[[Subject], _Found]] = {
    "decoders agree": _decoders,
    "preprocessing is the processor's own": _preprocessing,
    "the tower gives the same bits again": _tower,
    "the store gives back what it was given": _store,
    "a model answers the same with the cache": _answers,
}


def _same(one: torch.Tensor, other: torch.Tensor, what: str) -> _Found:
    if one.shape != other.shape or one.dtype != other.dtype:
        return "failed", f"{what}: {one.dtype} {list(one.shape)} against {other.dtype} {list(other.shape)}"
    if torch.equal(_bits(one), _bits(other)):
        return "passed", f"{what}: the same bits"
    count = int((one != other).sum())
    largest = float((one.double() - other.double()).abs().max())
    return "failed", f"{what}: {count:,} of {one.numel():,} values differ, by {largest:.3g} at most"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
