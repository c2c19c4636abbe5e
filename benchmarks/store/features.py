"""The data that every contestant stores: the same tensors, made from a fixed seed."""

from __future__ import annotations

import torch

from cache_store import StepKey, VideoKey

RECIPE = {
    "encoder": "qwen2_5_vl",
    "weights": "0" * 64,
    "dtype": "float16",
    "processor": {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14},
    "prompt": "Perform peg in hole insertion task.",
}
STEPS_PER_EPISODE = 200


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


def step_key(index: int, *, episodes: str = "episode") -> StepKey:
    """The key of the `index`-th small feature: episodes of 200 steps each."""
    episode, step = divmod(index, STEPS_PER_EPISODE)
    return StepKey(f"{episodes}_{episode:06d}", step * 30)


def video_key() -> VideoKey:
    """The key of the large feature."""
    return VideoKey("Video-MME", "benchmark", 128, "0" * 8)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory, as bytes."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
