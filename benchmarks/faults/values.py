"""Features that tell which key and version they are, so that a wrong or mixed one is recognised."""

from __future__ import annotations

import torch

WIDTH = 512


def value_of(key: int, version: int) -> torch.Tensor:
    """An int32 tensor [1, 1, 512] that no other key or version has, in any part."""
    steps = torch.arange(WIDTH, dtype=torch.int64)
    mixed = (steps * 2654435761 + key * 40503 + version * 69069 + (key ^ version)) % 2147483629
    mixed[0], mixed[1] = key, version
    return mixed.to(torch.int32).reshape(1, 1, WIDTH)


def version_in(value: object, key: int) -> int | None:
    """The version of a whole value of `key`; None for anything else."""
    if not isinstance(value, torch.Tensor) or value.shape != (1, 1, WIDTH) or value.dtype is not torch.int32:
        return None
    version = int(value[0, 0, 1])
    return version if torch.equal(value, value_of(key, version)) else None
