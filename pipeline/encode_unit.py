"""One unit end to end: decode -> encode -> put, each stage where its process calls it, with its failure named.

Nothing here knows of other units: a unit's bytes depend on the unit alone.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal, cast

import numpy as np
import torch

from cache_store import FeatureStore, StoreFull, StoreWriteError, VideoKey
from pipeline.encoders.base import (
    ImagePreprocess,
    Json,
    StepEncoder,
    StepInput,
    VideoEncoder,
    VideoPreprocess,
)
from pipeline.errors import MediaError
from pipeline.sources import ImageFile, StepSample, VideoSample
from pipeline.version import VERSION
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_frame, decode_video
from pipeline.vision.images import read_image
from pipeline.work_plan import BuildTask, Unit

Stage = Literal["source", "decode", "encode", "write"]


@dataclass(frozen=True)
class UnitFailure:
    """Why one unit gave no feature. `stops_build`: the same would fail every other unit too (bad disk, full store)."""

    key: str
    stage: Stage
    reason: str
    stops_build: bool = False


@dataclass(frozen=True, eq=False)
class DecodedUnit:
    """A unit ready for the encoder; crosses processes as uint8."""

    unit: Unit
    pixels: np.ndarray | StepInput
    provenance: Mapping[str, Json]
    decode_s: float

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels occupy while the unit is in flight."""
        if isinstance(self.pixels, StepInput):
            return sum(image.nbytes for image in self.pixels.images)
        return self.pixels.nbytes


@dataclass(frozen=True)
class UnitDone:
    """A unit whose feature is in the store."""

    key: str
    bytes: int  # of the published file
    encode_s: float
    write_s: float


@dataclass(frozen=True, eq=False)
class EncodedUnit:
    """A unit's feature, not yet stored."""

    unit: Unit
    value: object
    provenance: Mapping[str, Json]
    encode_s: float


def decode_unit(unit: Unit, task: BuildTask) -> DecodedUnit | UnitFailure:
    """Decode, sample and resize one unit's media. Returns a failure instead of raising for anything the media did."""
    started = time.perf_counter()
    pixels: np.ndarray | StepInput
    try:
        if isinstance(unit.sample, VideoSample):
            pixels, provenance = _decode_video(unit.sample, task)
        else:
            pixels, provenance = _decode_step(unit.sample, task)
    except MediaError as exc:
        return UnitFailure(unit.name, "decode", str(exc))
    except Exception as exc:  # noqa: BLE001 - one file's surprise must not end the build: it is named instead
        return UnitFailure(unit.name, "decode", f"{type(exc).__name__}: {exc}")
    return DecodedUnit(unit, pixels, provenance, time.perf_counter() - started)


def _decode_video(sample: VideoSample, task: BuildTask) -> tuple[np.ndarray, dict[str, Json]]:
    video = decode_video(
        sample.path,
        sampling=task.sampling,
        nframe=task.nframe,
        preprocess=cast(VideoPreprocess, task.spec.preprocess),
        cut=Cut(sample.start_s, sample.end_s),
        fps=sample.fps,
        partial_frames=task.partial_frames,
    )
    provenance: dict[str, Json] = {
        "decoder": video.decoder,
        "frame_indices": list(video.frame_indices),
        "num_frames": video.num_frames,
    }
    if video.partial is not None:
        provenance["partial"] = asdict(video.partial)
    return video.pixels, provenance


def _decode_step(sample: StepSample, task: BuildTask) -> tuple[StepInput, dict[str, Json]]:
    preprocess = cast(ImagePreprocess, task.spec.preprocess)
    images, decoders = [], {}
    for image in sample.images:
        if isinstance(image, ImageFile):
            pixels, decoder = read_image(image.path), f"pillow {_version('pillow')}"
        else:
            frame = decode_frame(image.path, image.frame_index)
            pixels, decoder = frame.pixels, frame.decoder
        images.append(preprocess(pixels))
        decoders[image.view] = decoder
    return StepInput(tuple(images), sample.instruction), {"decoders": decoders}


def encode_unit(decoded: DecodedUnit, encoder: VideoEncoder | StepEncoder, *, device: str) -> EncodedUnit:
    """Encode one decoded unit on the device that `encoder` lives on; lay its feature out as the contract says.

    Raises whatever the model raises: the caller knows whether a failure is the unit's or the device's.
    """
    started = time.perf_counter()
    unit = decoded.unit
    value: object
    if isinstance(unit.sample, VideoSample):
        features = cast(VideoEncoder, encoder).encode(cast(np.ndarray, decoded.pixels))
        value = video_entry(unit.sample, cast(VideoKey, unit.key), features)
    else:
        value = cast(StepEncoder, encoder).encode(cast(StepInput, decoded.pixels))
    provenance = {**decoded.provenance, **_what_encoded(device)}
    return EncodedUnit(unit, value, provenance, time.perf_counter() - started)


def video_entry(sample: VideoSample, key: VideoKey, features: torch.Tensor) -> dict[str, Any]:
    """Return the dict of the LongVA-style vision cache: `features` [frames, tokens, width] and its eight fields."""
    return {
        "vision_features": features,
        "video_id": key.video_id,
        "video_path": sample.relative_path,
        "nframe": key.nframe,
        "dataset": key.dataset,
        "model_signature": key.model_signature,
        "dtype": str(features.dtype).removeprefix("torch."),
        "shape": list(features.shape),
    }


def commit_unit(encoded: EncodedUnit, task: BuildTask, store: FeatureStore) -> UnitDone | UnitFailure:
    """Publish one feature. A full store and a failing disk come back as failures that stop the build."""
    started = time.perf_counter()
    unit = encoded.unit
    try:
        path = store.put(unit.key, encoded.value, recipe=task.recipe(unit.sample), provenance=dict(encoded.provenance))
        published_bytes = path.stat().st_size
    except (StoreWriteError, StoreFull, OSError) as exc:
        return UnitFailure(unit.name, "write", str(exc), stops_build=True)
    return UnitDone(unit.name, published_bytes, encoded.encode_s, time.perf_counter() - started)


@cache
def _what_encoded(device: str) -> dict[str, Json]:
    """Return the versions and the kind of processor behind the numbers. Equal hosts give equal bytes, so no names."""
    versions = {name: _version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"versions": {"vlm-cache": VERSION, **versions}, "processor": processor}


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
