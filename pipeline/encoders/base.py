"""What every encoder family offers: a picklable spec that knows the recipe, and the model that it loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

Json = Any  # str | int | float | bool | None | list[Json] | dict[str, Json]


@dataclass(frozen=True, eq=False)
class StepInput:
    """One VLM step, ready for the model: decoded and resized images, and the instruction."""

    images: tuple[np.ndarray, ...]  # uint8 [height, width, 3] RGB each, already resized, in view order
    instruction: str


@dataclass(frozen=True, eq=False)
class StepOnDevice:
    """One VLM step as the model takes it: its images as tensors, anywhere."""

    images: Sequence[torch.Tensor]  # uint8 [height, width, 3] each
    instruction: str


class VideoPreprocess(Protocol):
    """The CPU half of a video encoder's preprocessing. Picklable, holds no weights, runs in decoder processes."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Resize and crop one frame: uint8 [h, w, 3] RGB to uint8 [height, width, 3], as the PIL processor does."""
        ...


class ImagePreprocess(Protocol):
    """The CPU half of a step encoder's preprocessing. Picklable, holds no weights, runs in decoder processes."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize one image: uint8 [h, w, 3] RGB to uint8 [h', w', 3], as the PIL processor does."""
        ...


class VideoEncoder(Protocol):
    """A loaded vision tower on one device."""

    @property
    def frames_per_forward(self) -> int | None:
        """What the recipe asks for; None: all frames of a video at once."""
        ...

    def encode(self, pixels: np.ndarray) -> torch.Tensor:
        """Encode one video: uint8 [frames, height, width, 3] to a CPU tensor [frames, tokens, width], own storage."""
        ...

    def forward(self, pixels: torch.Tensor, *, at_most: int | None = None) -> torch.Tensor:
        """As `encode` from and to the device, which may still be computing; pixels elsewhere are brought there.

        `at_most` frames go through the tower at once, if that is less than what the recipe asks for.
        """
        ...


class StepEncoder(Protocol):
    """A loaded vision-language model on one device."""

    def encode(self, step: StepInput) -> torch.Tensor:
        """Encode one VLM step to a CPU float16 tensor [1, 1, width], own storage."""
        ...

    def forward(self, steps: Sequence[StepOnDevice], *, at_most: int | None = None) -> torch.Tensor:
        """As `encode` of each step, from and to the device, which may still be computing: [steps, 1, width].

        All go through the model at once, or `at_most` of them; images elsewhere are brought to the device.
        """
        ...


class VideoEncoderSpec(Protocol):
    """What was asked for, checked, without weights in memory. Picklable; made once, on the driver.

    `model_signature` is contract 3's; `preprocess` goes to the decoders; `load` runs in the encoder's process.
    """

    @property
    def family(self) -> str: ...

    @property
    def model_signature(self) -> str: ...

    @property
    def preprocess(self) -> VideoPreprocess: ...

    def recipe(self) -> Mapping[str, Json]:
        """Return everything about the model that changes the numbers, the weights' digest included."""
        ...

    def feature_shape(self, num_frames: int) -> tuple[int, int, int]:
        """Return [frames, tokens, width] of the feature of a video of `num_frames` sampled frames."""
        ...

    def feature_bytes(self, num_frames: int) -> int:
        """Return the payload bytes of the feature of a video of `num_frames` sampled frames."""
        ...

    def load(self, device: str) -> VideoEncoder:
        """Load the tower on `device` ("cpu", "cuda:0"), in evaluation mode."""
        ...


class StepEncoderSpec(Protocol):
    """As `VideoEncoderSpec`, for steps of robot episodes."""

    @property
    def family(self) -> str: ...

    @property
    def preprocess(self) -> ImagePreprocess: ...

    def recipe(self) -> Mapping[str, Json]:
        """Return everything about the model that changes the numbers, the weights' digest included."""
        ...

    def feature_bytes(self) -> int:
        """Return the payload bytes of one step's feature."""
        ...

    def load(self, device: str) -> StepEncoder:
        """Load the model on `device`, in evaluation mode."""
        ...


EncoderSpec = VideoEncoderSpec | StepEncoderSpec


@dataclass(frozen=True, eq=False)
class SpecOfDecoders:
    """What decoders need of a spec, without its class: that would import torch and transformers in their processes."""

    family: str
    model_signature: str | None  # None: of steps
    preprocess: VideoPreprocess | ImagePreprocess
    facts: Mapping[str, Json]

    @classmethod
    def of(cls, spec: EncoderSpec) -> SpecOfDecoders:
        """Return what is known of `spec`."""
        return cls(spec.family, getattr(spec, "model_signature", None), spec.preprocess, spec.recipe())

    def recipe(self) -> Mapping[str, Json]:
        """Return the spec's recipe."""
        return self.facts
