"""The encoders of the benchmark: real CLIP towers of any size with random weights, and two that compute nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_store import FeatureStore, model_signature
from cache_store.put_item import PutItem
from pipeline.encoders.base import StepInput, StepOnDevice
from pipeline.encoders.longva import ARCHITECTURE_KEYS, LongvaSpec
from pipeline.vision.preprocessing import ClipLikePreprocess


def clip_spec(vision: Mapping[str, Any], *, dtype: str) -> LongvaSpec:
    """LongVA's spec of a CLIP tower with weights from a fixed seed; `vision` is CLIPVisionConfig's arguments."""
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig(**vision)
    side = config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return LongvaSpec(
        family="longva",
        model_signature=model_signature("benchmark", -2),
        preprocess=ClipLikePreprocess.from_config({"image_processor_type": "CLIPImageProcessor", **size}),
        architecture={key: getattr(config, key) for key in ARCHITECTURE_KEYS},
        select_layer=-2,
        select_feature="patch",
        dtype=dtype,
        frames_per_forward=None,
        is_compiled=False,
        folder=None,
        prefix="",
    )


def small_clip(width: int, layers: int) -> LongvaSpec:
    """A float32 tower for one CPU core: 224 x 224 pixels in 49 patches, heads of 64."""
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers + 1}
    vision |= {"num_attention_heads": max(1, width // 64), "image_size": 224, "patch_size": 32}
    return clip_spec(vision, dtype="float32")


@dataclass(frozen=True)
class _AsItIs:
    """Preprocessing that hands frames on."""

    height: int = 0
    width: int = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image


class NoOpEncoder:
    """Sleeps, then gives 8 zeros."""

    def __init__(self, sleep_s: float) -> None:
        self._sleep_s = sleep_s

    def encode(self, step: StepInput) -> torch.Tensor:
        """As `pipeline.encoders.base.StepEncoder`."""
        return self.forward([StepOnDevice([], step.instruction)])

    def forward(self, steps: Sequence[StepOnDevice], *, at_most: int | None = None) -> torch.Tensor:
        """As `pipeline.encoders.base.StepEncoder`."""
        if self._sleep_s:
            time.sleep(self._sleep_s * len(steps))
        return torch.zeros(len(steps), 1, 8, dtype=torch.float16)


@dataclass(frozen=True)
class NoOpSpec:
    """A step encoder that computes nothing, on a simulated device that takes `sleep_s` for each unit."""

    sleep_s: float = 0.0
    publishes: bool = True  # False: in the encoders' processes the store's put is replaced by nothing
    family: str = "no-op"
    preprocess: _AsItIs = _AsItIs()

    def recipe(self) -> Mapping[str, Any]:
        """As `pipeline.encoders.base.StepEncoderSpec`."""
        return {"family": self.family, "dtype": "float16", "weights": "none"}

    def feature_bytes(self) -> int:
        """As `pipeline.encoders.base.StepEncoderSpec`."""
        return 16

    def load(self, device: str) -> NoOpEncoder:
        """As `pipeline.encoders.base.StepEncoderSpec`."""
        if not self.publishes:
            _publish_nothing()
        return NoOpEncoder(self.sleep_s)


def _publish_nothing() -> None:
    def put(self: FeatureStore, *_: Any, **__: Any) -> Path:
        return self.root

    def put_many(self: FeatureStore, items: Iterable[PutItem], *, create_only: bool = False) -> list[Path]:
        return [self.root for _ in items]

    FeatureStore.put = put  # type: ignore[method-assign]
    FeatureStore.put_many = put_many  # type: ignore[method-assign]


class FirstPixelEncoder:
    """Gives each frame's first pixel: a model that costs nothing beside the decoder."""

    frames_per_forward: int | None = None

    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """As `pipeline.encoders.base.VideoEncoder`."""
        return self.forward(torch.tensor(pixels))

    def forward(self, pixels: torch.Tensor, *, at_most: int | None = None) -> torch.Tensor:
        """As `pipeline.encoders.base.VideoEncoder`."""
        return pixels[:, :1, 0, :].to(torch.float16)


@dataclass(frozen=True)
class FirstPixelSpec:
    """The spec of `FirstPixelEncoder`; frames are resized and cropped as for CLIP ViT-L/14-336."""

    preprocess: ClipLikePreprocess
    family: str = "first-pixel"
    model_signature: str = model_signature("first-pixel", 0)

    def recipe(self) -> Mapping[str, Any]:
        """As `pipeline.encoders.base.VideoEncoderSpec`."""
        return {"family": self.family, "dtype": "float16", "weights": "none"}

    def feature_shape(self, num_frames: int) -> tuple[int, int, int]:
        """As `pipeline.encoders.base.VideoEncoderSpec`."""
        return num_frames, 1, 3

    def feature_bytes(self, num_frames: int) -> int:
        """As `pipeline.encoders.base.VideoEncoderSpec`."""
        return num_frames * 6

    def load(self, device: str) -> FirstPixelEncoder:
        """As `pipeline.encoders.base.VideoEncoderSpec`."""
        return FirstPixelEncoder()
