"""A unit's second half: its feature laid out as the store keeps it, with what happened to it on the way."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch

from cache_store import PutItem, VideoKey, video_value
from pipeline.decode_unit import DecodedUnit
from pipeline.encoders.base import Json
from pipeline.sources import VideoSample
from pipeline.version import VERSION, version_of
from pipeline.work_plan import BuildTask, Unit


@dataclass(frozen=True, eq=False)
class EncodedUnit:
    """A unit's feature, not yet stored."""

    unit: Unit
    value: object
    provenance: Mapping[str, Json]
    encode_s: float
    split_into: int | None = None  # as in `UnitDone`

    @property
    def nbytes(self) -> int:
        """Bytes of the feature's tensor."""
        value = self.value["vision_features"] if isinstance(self.value, dict) else self.value
        return int(cast(torch.Tensor, value).nbytes)


def encoded_unit(
    decoded: DecodedUnit, features: torch.Tensor, *, device: str, encode_s: float, split_into: int | None = None
) -> EncodedUnit:
    """Lay a unit's feature out as the contract says, and note what happened to it on the way."""
    unit = decoded.unit
    value: object = features
    if isinstance(unit.sample, VideoSample):
        value = video_value(cast(VideoKey, unit.key), features, video_path=unit.sample.relative_path)
    provenance = {**decoded.provenance, **_what_encoded(device)}
    if decoded.batch is not None:
        provenance["steps_together"] = list(decoded.batch.steps)
    if split_into is not None:
        of = "frames" if isinstance(unit.sample, VideoSample) else "steps"
        provenance[f"{of}_per_forward"] = split_into
    return EncodedUnit(unit, value, provenance, encode_s, split_into)


def put_item(encoded: EncodedUnit, task: BuildTask) -> PutItem:
    """Return what the store is to keep of a unit."""
    unit = encoded.unit
    return PutItem(unit.key, encoded.value, task.recipe(unit.sample), dict(encoded.provenance))


@cache
def _what_encoded(device: str) -> dict[str, Json]:
    """Return the versions and the kind of processor behind the numbers. Equal hosts give equal bytes, so no names."""
    versions = {name: version_of(name) for name in ("torch", "transformers", "numpy", "pillow")}
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"versions": {"vlm-cache": VERSION, **versions}, "processor": processor}
