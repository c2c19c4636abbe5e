"""Every rule that turns an index into a `vlm_idx`: once, for the build that writes and the loaders that read.

The unit of `vlm_idx` is the format's own: robot poses in the new VLA format, rows in the old one, frames in LeRobot.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby


def action_interval(*, robot_hz: float, action_expert_hz: float) -> int:
    """Return how many robot poses one action spans, at least 1. Source: the new-format VLA loader, int(a / b)."""
    return max(1, int(robot_hz / action_expert_hz))


def new_format_samples(num_poses: int, *, interval: int) -> int:
    """Return how many samples a new-format episode of `num_poses` poses has."""
    return max(0, (num_poses - interval) // interval)


def new_format_vlm_idx(sample: int, *, vlm_reuse_count: int, interval: int) -> int:
    """Return the step that sample `sample` of a new-format episode uses: 0, 30, 60, ... at the defaults."""
    return (sample // vlm_reuse_count) * interval * vlm_reuse_count


def old_format_samples(num_rows: int, *, horizon: int) -> int:
    """Return how many samples an old-format episode of `num_rows` rows has."""
    return max(0, num_rows - horizon)


def old_format_vlm_idx(sample: int, *, vlm_reuse_count: int, num_rows: int) -> int:
    """Return the step that sample `sample` of an old-format episode uses."""
    return min((sample // vlm_reuse_count) * vlm_reuse_count, num_rows - 1)


def lerobot_vlm_idx(frame_index: int, *, vlm_reuse_count: int) -> int:
    """Return the step that frame `frame_index` of a LeRobot episode uses."""
    return (frame_index // vlm_reuse_count) * vlm_reuse_count


def each_once(indices: Iterator[int]) -> Iterator[int]:
    """Yield ascending indices without their repeats: the steps that the samples need."""
    return (index for index, _ in groupby(indices))
