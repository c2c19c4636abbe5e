"""A unit's first half: decode, sample and resize its media, with what fails named.

A unit's pixels depend on the unit alone. Decoder processes run this, so nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import cast

import numpy as np

from pipeline.encoders.base import ImagePreprocess, Json, StepInput, VideoPreprocess
from pipeline.errors import MediaError
from pipeline.failures import UnitFailure, failure_of
from pipeline.sources import ImageFile, StepSample, VideoSample, localise
from pipeline.version import version_of
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import DecodedVideo, decode_cuts, decode_frame
from pipeline.vision.images import read_image
from pipeline.work_plan import BuildTask, Unit

_Decoded = tuple[np.ndarray | StepInput, Mapping[str, Json]]


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The steps of one forward, in their episode's order; those that could not be decoded are missing."""

    steps: Mapping[int, StepInput]  # by vlm_idx
    wanted: int  # how many of them are units of the same call; the others are only there for these units' bits

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels occupy."""
        return sum(image.nbytes for step in self.steps.values() for image in step.images)


@dataclass(frozen=True, eq=False)
class DecodedUnit:
    """A unit ready for the encoder; crosses processes as uint8."""

    unit: Unit
    pixels: np.ndarray | StepInput
    provenance: Mapping[str, Json]
    decode_s: float
    batch: StepBatch | None = None  # shared by the units of a call that share a forward; None: each has its own

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels occupy while the unit is in flight."""
        if self.batch is not None:
            return self.batch.nbytes // self.batch.wanted
        if isinstance(self.pixels, StepInput):
            return sum(image.nbytes for image in self.pixels.images)
        return self.pixels.nbytes

    @property
    def row(self) -> int:
        """The unit's place in its batch."""
        batch, sample = cast(StepBatch, self.batch), cast(StepSample, self.unit.sample)
        return list(batch.steps).index(sample.vlm_idx)

    def by_itself(self) -> DecodedUnit:
        """Return a step of a batch as a batch of one."""
        alone = StepBatch({cast(StepSample, self.unit.sample).vlm_idx: cast(StepInput, self.pixels)}, 1)
        return replace(self, unit=self.unit.by_itself(), batch=alone)


def decode_unit(unit: Unit, task: BuildTask) -> DecodedUnit | UnitFailure:
    """Decode, sample and resize one unit's media. Returns a failure instead of raising for anything the media did."""
    (decoded,) = decode_units([unit], task)
    return decoded


def decode_units(units: Sequence[Unit], task: BuildTask) -> list[DecodedUnit | UnitFailure]:
    """Decode each unit as `decode_unit` does, with equal bits; neighbours that are clips of one file open it once.

    Neighbours that share a forward share its pixels.
    """
    decoded: list[DecodedUnit | UnitFailure] = []
    for _, neighbours in groupby(units, key=lambda unit: unit.batch or unit.file):
        together = list(neighbours)
        sample = together[0].sample
        is_batch = isinstance(sample, StepSample) and bool(sample.together)
        decoded += _decode_batch(together, task) if is_batch else _decode_together(together, task)
    return decoded


def _decode_batch(units: list[Unit], task: BuildTask) -> list[DecodedUnit | UnitFailure]:
    """Decode all steps of a forward for the sake of some of them."""
    started = time.perf_counter()
    decoded: dict[int, _Decoded] = {}
    errors: dict[int, Exception] = {}
    for step in cast(StepSample, units[0].sample).together:
        try:
            decoded[step.vlm_idx] = _decode_step(step, task)
        except Exception as exc:  # noqa: BLE001 - named if it is one of the units; the others go on without it
            errors[step.vlm_idx] = exc
    batch = StepBatch({vlm_idx: cast(StepInput, pixels) for vlm_idx, (pixels, _) in decoded.items()}, len(units))
    seconds = (time.perf_counter() - started) / len(units)
    ends: list[DecodedUnit | UnitFailure] = []
    for unit in units:
        vlm_idx = cast(StepSample, unit.sample).vlm_idx
        if vlm_idx in errors:
            ends.append(failure_of(errors[vlm_idx], key=unit.name, stage="decode"))
        else:
            ends.append(DecodedUnit(unit, *decoded[vlm_idx], seconds, batch))
    return ends


def _decode_together(units: list[Unit], task: BuildTask) -> list[DecodedUnit | UnitFailure]:
    started = time.perf_counter()
    decoded: list[_Decoded | MediaError]
    try:
        if isinstance(units[0].sample, VideoSample):
            decoded = _decode_videos([cast(VideoSample, unit.sample) for unit in units], task)
        else:
            decoded = [_decode_step(cast(StepSample, unit.sample), task) for unit in units]
    except Exception as exc:  # noqa: BLE001 - one file's surprise must not end the build: it is named instead
        if len(units) == 1:
            return [failure_of(exc, key=units[0].name, stage="decode")]
        return [decode_unit(unit, task) for unit in units]  # the others are not to blame
    seconds = (time.perf_counter() - started) / len(units)
    return [
        failure_of(one, key=unit.name, stage="decode")
        if isinstance(one, MediaError)
        else DecodedUnit(unit, *one, seconds)
        for unit, one in zip(units, decoded, strict=True)
    ]


def _decode_videos(clips: list[VideoSample], task: BuildTask) -> list[_Decoded | MediaError]:
    """Decode clips of one file."""
    with localise(clips[0].path, limit_bytes=task.fetch_limit_bytes) as path:
        decoded = decode_cuts(
            path,
            [Cut(clip.start_s, clip.end_s) for clip in clips],
            sampling=task.sampling,
            nframe=task.nframe,
            preprocess=cast(VideoPreprocess, task.spec.preprocess),
            fps=clips[0].fps,
            partial_frames=task.partial_frames,
        )
    return [one if isinstance(one, MediaError) else _with_provenance(one) for one in decoded]


def _with_provenance(video: DecodedVideo) -> _Decoded:
    provenance: dict[str, Json] = {
        "decoder": video.decoder,
        "frame_indices": list(video.frame_indices),
        "num_frames": video.num_frames,
    }
    if video.partial is not None:
        provenance["partial"] = asdict(video.partial)
    return video.pixels, provenance


def _decode_step(sample: StepSample, task: BuildTask) -> _Decoded:
    preprocess = cast(ImagePreprocess, task.spec.preprocess)
    images, decoders = [], {}
    for image in sample.images:
        with localise(image.path, limit_bytes=task.fetch_limit_bytes) as path:
            if isinstance(image, ImageFile):
                pixels, decoder = read_image(path), f"pillow {version_of('pillow')}"
            else:
                frame = decode_frame(path, image.frame_index)
                pixels, decoder = frame.pixels, frame.decoder
        images.append(preprocess(pixels))
        decoders[image.view] = decoder
    return StepInput(tuple(images), sample.instruction), {"decoders": decoders}
