"""The baseline to beat: the last N frames and nothing else, encoded when a question comes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from consumers.numeric_options import require_whole_numbers
from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.frame_memory import KeptFrame


class LastNFramesEngine(DelayedBatchInferenceEngine):
    """Answers from the last `num_frames` frames, as one video at their true times.

    Frames are paired from the oldest on, as a video of these frames alone would be. `options` are those of
    `DelayedBatchInferenceEngine`, but for the sizes of the memories.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        num_frames: int = 4,
        **options: Any,
    ) -> None:
        require_whole_numbers(num_frames=num_frames)
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        super().__init__(
            model,
            processor,
            device,
            star_memory_size=0,
            stream_window_size=num_frames,
            max_sampled_frames=num_frames,
            **options,
        )

    def _paired(self, kept: list[KeptFrame]) -> dict[Hashable, list[KeptFrame]]:
        size = self.runner.frames_per_grid
        groups = [kept[start : start + size] for start in range(0, len(kept), size)]
        return {tuple(frame.index for frame in group): group for group in groups}
