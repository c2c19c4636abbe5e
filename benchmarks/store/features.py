"""The data that every contestant stores: the same tensors, made from a fixed seed."""

from __future__ import annotations

import torch


def small_features(count: int, width: int) -> torch.Tensor:
    """`[count, 1, 1, width]` float16 random values; `[i]` is one feature."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 1, width, generator=generator).half()


def large_feature(shape: tuple[int, int, int]) -> torch.Tensor:
    """`[frames, tokens, channels]` float16 random values."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).half()


def shuffled(count: int) -> list[int]:
    """The indices below `count` in one fixed random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(2)).tolist()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory, as bytes."""
    return tensor.view(-1).view(torch.uint8).numpy().data
