"""From samples of robot episodes to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# What towers compute in: torch can stack these everywhere, and an error while a batch is sent would be a wait for ever.
_TOWERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class EmptyBatch(LookupError):
    """Every sample of a batch was skipped, because its feature is missing."""


class _Features(list[Any]):
    """A list of features that travels between processes as one tensor where all are alike, and arrives as a list.

    Each tensor by itself would take an open file: a worker that sends more than the limit of them waits for ever.
    Samples that share a feature share it at the other end, too.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        tensors = {id(feature): feature for feature in self if feature is not None}
        kinds = set(map(_kind, tensors.values()))
        if len(kinds) != 1 or None in kinds:
            return list, (list(self),)
        places = {id_: place for place, id_ in enumerate(tensors)}
        return _arrived, (
            torch.stack([feature.detach() for feature in tensors.values()]),
            [places.get(id(feature)) for feature in self],
        )


def _kind(feature: Any) -> tuple[torch.Size, torch.dtype] | None:
    """What tensors have in common that one can hold; None of anything else."""
    is_plain = type(feature) is torch.Tensor and feature.device.type == "cpu" and feature.layout == torch.strided
    return (feature.shape, feature.dtype) if is_plain and feature.dtype in _TOWERS else None


def _arrived(stacked: torch.Tensor, places: list[int | None]) -> list[torch.Tensor | None]:
    features = stacked.unbind()
    return [None if place is None else features[place] for place in places]


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
        "vl_cache": _Features(sample["vl_cache"] for sample in samples),
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
