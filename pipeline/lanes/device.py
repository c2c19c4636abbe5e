"""One device and the model on it: uploads, forwards one after another, and downloads, all three at the same time.

A forward that finds no memory is repeated, and then split into smaller batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch

from pipeline.decode_unit import DecodedUnit, StepBatch
from pipeline.encode_unit import EncodedUnit, encoded_unit
from pipeline.encoders import StepEncoder, VideoEncoder
from pipeline.encoders.base import StepInput, StepOnDevice
from pipeline.encoders.transfer import OnDevice, Transfer
from pipeline.failures import is_out_of_memory
from pipeline.lanes.batch_sizes import BatchSizes
from pipeline.lanes.one_at_a_time import OneAtATime

_Inputs = torch.Tensor | list[StepOnDevice]  # a video's frames, or steps


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
        inputs = [self._on_device(pixels)] if isinstance(pixels, StepInput) else self._upload(pixels)
        features, seconds, split_into = self._features(inputs)
        return encoded_unit(decoded, features, device=self._device, encode_s=seconds, split_into=split_into)

    def encode_batch(self, decoded: Sequence[DecodedUnit]) -> list[EncodedUnit]:
        """Encode units of one batch, with all that belong to it; raises as `encode` does, out of memory at one step."""
        batch = cast(StepBatch, decoded[0].batch)
        features, seconds, split_into = self._features([self._on_device(step) for step in batch.steps.values()])
        return [
            encoded_unit(
                unit,
                features[unit.row : unit.row + 1].clone(),  # a slice would be stored with all it was cut from
                device=self._device,
                encode_s=seconds / len(decoded),
                split_into=split_into,
            )
            for unit in decoded
        ]

    def _on_device(self, step: StepInput) -> StepOnDevice:
        return StepOnDevice([self._upload(image) for image in step.images], step.instruction)

    def _upload(self, pixels: np.ndarray) -> torch.Tensor:
        try:
            return self._transfer.to_device(pixels)
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
        # The forward brings each of its batches to the device by itself.
        return torch.tensor(pixels)

    def _features(self, inputs: _Inputs) -> tuple[torch.Tensor, float, int | None]:
        result, split_into = self._turns.run(lambda: self._forward(inputs))
        return *self._transfer.to_host(result), split_into

    def _forward(self, inputs: _Inputs) -> tuple[OnDevice, int | None]:
        """Return the features, and how many frames or steps went at once where that is fewer than the recipe's."""
        encoder = cast(Any, self._encoder)  # its inputs are of its own kind
        size = min(len(inputs), self._sizes.at_once or len(inputs))
        result = self._try(lambda: encoder.forward(inputs, at_most=size))
        if result is None:
            # Another unit on its way to the host, or another program, may have had the memory: the same once more.
            self._free_memory()
            result = self._try(lambda: encoder.forward(inputs, at_most=size))
        while result is None and size > 1:
            size = (size + 1) // 2
            self._free_memory()
            result = self._try(lambda: encoder.forward(inputs, at_most=size))  # noqa: B023 - called at once
            if result is not None:
                self._sizes.learn(size)
        if result is None:
            one = "a single frame" if isinstance(inputs, torch.Tensor) else "a single step"
            raise torch.cuda.OutOfMemoryError(f"out of memory with {one}")
        asked = encoder.frames_per_forward if isinstance(inputs, torch.Tensor) else None
        return result, size if size < min(asked or len(inputs), len(inputs)) else None

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
