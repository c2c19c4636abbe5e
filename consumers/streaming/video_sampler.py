"""Fewer frames of a video that keep their true times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from consumers.numeric_options import require_numbers, require_whole_numbers


class VideoSampler:
    """At most one frame in each slot of 1 / `target_fps` seconds (None: all), and at most `max_sampled_frames` of them.

    Slots are those of absolute time, so frames that come later do not change which earlier ones are chosen.
    """

    def __init__(self, target_fps: float | None = None, max_sampled_frames: int = 48) -> None:
        require_whole_numbers(max_sampled_frames=max_sampled_frames)
        if target_fps is not None:
            require_numbers(target_fps=target_fps)
        if (target_fps is not None and not 0 < target_fps <= 1e9) or max_sampled_frames < 1:
            raise ValueError(
                f"target_fps {target_fps} and max_sampled_frames {max_sampled_frames} must be above 0, target_fps at "
                "most 1e9"
            )
        self._target_fps, self._most = target_fps, max_sampled_frames

    def slot(self, time_s: float) -> int | None:
        """Return the number of the slot that a time lies in; None without `target_fps`."""
        return None if self._target_fps is None else math.floor(time_s * self._target_fps + 1e-6)

    def choose(self, timestamps: Sequence[float]) -> list[int]:
        """Return the indices of the frames to take, ascending: the first of each slot, then evenly over those."""
        chosen, last = [], None
        for index, time_s in enumerate(timestamps):
            slot = self.slot(time_s)
            if slot is None or slot != last:
                chosen.append(index)
            last = slot
        if len(chosen) > self._most:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, self._most, dtype=int)]
        return chosen

    def sample(self, frames: Sequence[Any], timestamps: Sequence[float]) -> tuple[list[Any], list[float], float]:
        """Return the chosen frames, their timestamps, and `second_per_grid_t` for them.

        Raises:
            ValueError: not one timestamp for each frame.
        """
        if len(frames) != len(timestamps):
            raise ValueError(f"{len(frames)} frames came with {len(timestamps)} timestamps")
        chosen = self.choose(timestamps)
        times = [timestamps[index] for index in chosen]
        return [frames[index] for index in chosen], times, seconds_per_grid(times, len(chosen))


def seconds_per_grid(times_s: Sequence[float], frames: int) -> float:
    """Return the time from one pair of frames to the next if they were even: duration / (frames / 2); 0.0 for none."""
    return (times_s[-1] - times_s[0]) / (frames / 2) if frames else 0.0
