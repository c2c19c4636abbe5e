"""From samples of robot episodes to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class EmptyBatch(LookupError):
    """Every sample of a batch was skipped, because its feature is missing."""


def unified_collate_fn(batch: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the samples as one batch with the keys of contract 2, in their order.

    `instruction`, `images`, `vl_cache`, `cache_keys`, `vlm_indices`, `reuse_steps`, `confidence`, `prompt_hash` and
    `episode_ids` (None for the old format) are lists. `sensor_data`, `robot_states` and `actions` are stacked, shorter
    windows padded with zeros behind their end; `has_sensor_mask` and `has_robot_states_mask` are bool `[batch]`.
    Samples that `on_miss="skip"` made None are left out.

    Raises:
        EmptyBatch: no sample is left.
    """
    samples = [sample for sample in batch if sample is not None]
    if not samples:
        raise EmptyBatch(
            f"none of the {len(batch)} samples of a batch has its feature, and on_miss='skip' leaves them out; build "
            "what preflight() names, or take filter_by_cache=True"
        )
    return {
        "instruction": [sample["instruction"] for sample in samples],
        "images": [sample["images"] for sample in samples],
        "vl_cache": [sample["vl_cache"] for sample in samples],
        "sensor_data": _stacked([sample["sensor_data"] for sample in samples]),
        "robot_states": _stacked([sample["robot_states"] for sample in samples]),
        "actions": _stacked([sample["actions"] for sample in samples]),
        "has_sensor_mask": torch.tensor([sample["has_sensor"] for sample in samples]),
        "has_robot_states_mask": torch.tensor([sample["has_robot_states"] for sample in samples]),
        "cache_keys": [sample["cache_key"] for sample in samples],
        "vlm_indices": [sample["vlm_idx"] for sample in samples],
        "reuse_steps": [sample["reuse_step"] for sample in samples],
        "confidence": [sample["confidence"] for sample in samples],
        "prompt_hash": [sample["prompt_hash"] for sample in samples],
        "episode_ids": [sample.get("episode_id") for sample in samples],
    }


def _stacked(windows: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(len(window) for window in windows)
    if all(len(window) == longest for window in windows):
        return torch.stack(list(windows))
    stacked = windows[0].new_zeros((len(windows), longest, *windows[0].shape[1:]))
    for row, window in zip(stacked, windows, strict=True):
        row[: len(window)] = window
    return stacked
