"""How many bytes a plan's features will take in the store, told before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cache_store import Lookup, int8
from pipeline.encoders.base import EncoderSpec, StepEncoderSpec, VideoEncoderSpec
from pipeline.sources import VideoSample
from pipeline.work_plan import BuildTask, Decision, Plan

# Around the payload of one feature: the archive's headers and a record of a short recipe. Not less, so that no estimate
# is above what is written.
FILE_OVERHEAD_BYTES = 1536
_RULES_OF_FIXED_LENGTH = ("longva", "vlmevalkit")


@dataclass(frozen=True)
class SizeEstimate:
    """The bytes of all features that a plan wants, stored ones included."""

    bytes: int
    features: int
    is_upper_bound: bool  # some videos do not tell how short they are
    new_bytes: int  # the part of it that is to be built


def upper_bound(plan: Plan) -> SizeEstimate:
    """Return what the plan takes if every video has as many frames as `nframe` allows; looks at no file."""
    features = plan.todo + plan.skipped
    is_exact = not _makes_videos(plan.task.spec) or plan.task.sampling.name in _RULES_OF_FIXED_LENGTH
    file_bytes = _file_bytes(plan.task, plan.task.nframe)
    return SizeEstimate(features * file_bytes, features, not is_exact, plan.todo * file_bytes)


def by_length(plan: Plan, store: Lookup) -> SizeEstimate:
    """As `upper_bound`, with each video's own length: by its stored file, else by its header, else as `nframe` allows.

    Opens every video that is to be built.
    """
    stored_bytes = new_bytes = features = 0
    is_upper_bound = False
    for sample, decision in plan.planned():
        if decision == Decision.FAILED:
            continue
        features += 1
        frames: int | None = plan.task.nframe
        if isinstance(sample, VideoSample):
            if decision == Decision.SKIP:
                stored_bytes += _stored_bytes(sample, plan.task, store)
                continue
            frames = _frames_of(sample, plan.task)
        is_upper_bound = is_upper_bound or frames is None
        file_bytes = _file_bytes(plan.task, plan.task.nframe if frames is None else frames)
        stored_bytes += file_bytes if decision == Decision.SKIP else 0
        new_bytes += file_bytes if decision == Decision.TODO else 0
    return SizeEstimate(stored_bytes + new_bytes, features, is_upper_bound, new_bytes)


def smallest_feature(task: BuildTask) -> tuple[int, str]:
    """Return the bytes of the smallest feature that a build makes, and what it is called."""
    # The shortest video has one frame.
    return _payload_bytes(task, 1), "one frame's feature" if _makes_videos(task.spec) else "one feature"


def _makes_videos(spec: EncoderSpec) -> bool:
    return hasattr(spec, "model_signature")


def _file_bytes(task: BuildTask, frames: int) -> int:
    return _payload_bytes(task, frames) + FILE_OVERHEAD_BYTES


def _payload_bytes(task: BuildTask, frames: int) -> int:
    if not _makes_videos(task.spec):
        return cast(StepEncoderSpec, task.spec).feature_bytes()
    spec = cast(VideoEncoderSpec, task.spec)
    return int8.payload_bytes(spec.feature_shape(frames)) if task.store_dtype == "int8" else spec.feature_bytes(frames)


def _stored_bytes(sample: VideoSample, task: BuildTask, store: Lookup) -> int:
    # None under an alias, or when just evicted.
    return store.bytes_of(task.key(sample), recipe=task.recipe(sample)) or _file_bytes(task, task.nframe)


def _frames_of(sample: VideoSample, task: BuildTask) -> int | None:
    """How many frames will be sampled; None when the file does not tell."""
    if task.sampling.name in _RULES_OF_FIXED_LENGTH:
        return task.nframe
    if not isinstance(sample.path, Path) or sample.fps is not None:
        return None
    # Late: PyAV belongs to the build, and plans are also made by who does not decode.
    from pipeline.vision.survey import promised_length

    promised = promised_length(sample.path)
    if promised is None:
        return None
    frames, fps = promised
    if sample.end_s is not None or sample.start_s is not None:
        end_s = frames / fps if sample.end_s is None else min(sample.end_s, frames / fps)
        frames = min(frames, max(1, math.ceil((end_s - (sample.start_s or 0.0)) * fps) + 1))
    return len(task.sampling.indices(frames, count=task.nframe, fps=fps))
