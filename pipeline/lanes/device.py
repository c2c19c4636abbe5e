"""One device and the model on it: uploads, forwards one after another, and downloads, all three at the same time.

A forward that finds no memory is repeated, and then split into smaller batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from pipeline.encode_unit import DecodedUnit, EncodedUnit, encoded_unit
from pipeline.encoders import StepEncoder, VideoEncoder
from pipeline.encoders.base import StepInput
from pipeline.encoders.transfer import OnDevice, Transfer
from pipeline.failures import is_out_of_memory
from pipeline.lanes.batch_sizes import BatchSizes
from pipeline.lanes.one_at_a_time import OneAtATime


class DeviceStage:
    """Encodes units; called by several threads at once, of which one holds the device while others move their data."""

    def __init__(self, encoder: VideoEncoder | StepEncoder, device: str, sizes: BatchSizes, *, limit_s: float) -> None:
        self._encoder, self._device, self._sizes = encoder, device, sizes
        self._transfer = Transfer(device)
        self._turns = OneAtATime("device", limit_s=limit_s)

    def encode(self, decoded: DecodedUnit) -> EncodedUnit:
        """Encode one unit.

        Raises:
            Hung: the forward took longer than the limit.
            Exception: whatever the model raises, out of memory at one frame included.
        """
        pixels = decoded.pixels
        split_into: int | None = None
        if isinstance(pixels, StepInput):
            images = [self._upload(image) for image in pixels.images]
            result = self._turns.run(lambda: self._forward_step(images, pixels.instruction))
        else:
            frames = self._upload(pixels)
            result, split_into = self._turns.run(lambda: self._forward_video(frames))
        features, seconds = self._transfer.to_host(result)
        return encoded_unit(decoded, features, device=self._device, encode_s=seconds, split_into=split_into)

    def _upload(self, pixels: np.ndarray) -> torch.Tensor:
        try:
            return self._transfer.to_device(pixels)
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
        # The forward brings each of its batches to the device by itself.
        return torch.tensor(pixels)

    def _forward_step(self, images: Sequence[torch.Tensor], instruction: str) -> OnDevice:
        encoder = cast(StepEncoder, self._encoder)
        result = self._try(lambda: encoder.forward(images, instruction))
        if result is None:
            self._free_memory()
            result = self._transfer.run(lambda: encoder.forward(images, instruction))
        return result

    def _forward_video(self, frames: torch.Tensor) -> tuple[OnDevice, int | None]:
        """Return the features, and how many frames went at once where that is fewer than the recipe's."""
        encoder = cast(VideoEncoder, self._encoder)
        size = min(len(frames), self._sizes.frames or len(frames))
        result = self._try(lambda: encoder.forward(frames, at_most=size))
        if result is None:
            # Another unit on its way to the host, or another program, may have had the memory: the same once more.
            self._free_memory()
            result = self._try(lambda: encoder.forward(frames, at_most=size))
        while result is None and size > 1:
            size = (size + 1) // 2
            self._free_memory()
            result = self._try(lambda: encoder.forward(frames, at_most=size))  # noqa: B023 - called at once
            if result is not None:
                self._sizes.learn(size)
        if result is None:
            raise torch.cuda.OutOfMemoryError("out of memory with a single frame")
        asked = encoder.frames_per_forward or len(frames)
        return result, size if size < min(asked, len(frames)) else None

    def _try(self, forward: Callable[[], torch.Tensor]) -> OnDevice | None:
        """Run a forward; None if there was no memory for it."""
        try:
            return self._transfer.run(forward)
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
            return None

    def _free_memory(self) -> None:
        """Give back what failed forwards and finished downloads left behind."""
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
