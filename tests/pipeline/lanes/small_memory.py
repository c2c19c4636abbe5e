"""A video encoder on a device with room for few frames: a real encoder in all but its numbers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from cache_store import VideoKey
from pipeline.decode_unit import DecodedUnit
from pipeline.sources import VideoSample
from pipeline.work_plan import Unit


class SmallMemory:
    """Returns each frame's mean, [frames, 1, 3]; more than `room` frames at once do not fit."""

    frames_per_forward: int | None = None

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []  # frames of each forward that was tried

    def forward(self, pixels: torch.Tensor, *, at_most: int | None = None) -> torch.Tensor:
        step = min(count for count in (self.frames_per_forward, at_most, len(pixels)) if count is not None)
        parts = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            self.sizes.append(len(part))
            if len(part) > self.room:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            parts.append(part.float().mean(dim=(1, 2))[:, None])
        return torch.cat(parts)


class Hanging:
    """Never comes back from a video whose first pixel is 255, until `gate` opens."""

    frames_per_forward: int | None = None

    def __init__(self) -> None:
        self.gate = threading.Event()

    def forward(self, pixels: torch.Tensor, *, at_most: int | None = None) -> torch.Tensor:
        if int(pixels[0, 0, 0, 0]) == 255:
            self.gate.wait()
        return pixels.float()


def video(frames: int, *, fill: int | None = None, name: str = "a") -> DecodedUnit:
    """Return a decoded video of `frames` different frames, or of one colour."""
    pixels = np.arange(frames * 12, dtype=np.uint32).reshape(frames, 2, 2, 3).astype(np.uint8)
    if fill is not None:
        pixels[:] = fill
    sample = VideoSample("clips", name, Path(f"{name}.mp4"), f"{name}.mp4")
    return DecodedUnit(Unit(name, VideoKey("clips", name, frames, "0" * 8), sample), pixels, {"decoder": "test"}, 0.0)
