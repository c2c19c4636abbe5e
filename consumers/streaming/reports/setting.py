"""What every report needs: a model, a video, what is asked, and the facts about them that a reader must know."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from consumers.streaming.reports.meter import Meter
from consumers.streaming.reports.report import Cell
from consumers.streaming.reports.source_video import SourceVideo

# Of all reports, so that engines whose own bounds differ see the same pixels. Source: the delayed engine's defaults.
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 4 * 224 * 224
QUESTIONS = (
    "What happens in this video?",
    "What is the largest thing to be seen, and which colour has it?",
    "Did anything change since the beginning?",
)


def _silent(_done: int, _of: int, _what: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Setting:
    """`told(done, of, what)` is called as a report goes on; pixel bounds are per frame."""

    model: Any
    processor: Any
    video: SourceVideo
    model_name: str = ""
    max_new_tokens: int = 64
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    told: Callable[[int, int, str], None] = field(default=_silent)

    @property
    def meter(self) -> Meter:
        """Measures the model's device."""
        return Meter(torch.device(self.model.device))

    @property
    def pixel_bounds(self) -> dict[str, Any]:
        """The options of engines."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}

    def facts(self) -> dict[str, Cell]:
        """Return what the figures depend on."""
        device = torch.device(self.model.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "video": self.video.path.name,
            "frames": self.video.num_frames,
            "frame_stride": self.video.stride,
            "frames_per_s": self.video.fps,
            "frame_times": self.video.pace,
            "model": self.model_name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
            "device": f"{device.type} ({name})",
            "memory_counted": self.meter.memory_counted,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "text_after_video": "spatial (transformers' rule since 5.3, and native's)",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
