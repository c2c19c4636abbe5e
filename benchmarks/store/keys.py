"""The keys and the recipe under which every row files its features; without torch, for the cases that need none."""

from __future__ import annotations

from cache_store import StepKey, VideoKey

RECIPE = {
    "encoder": "qwen2_5_vl",
    "weights": "0" * 64,
    "dtype": "float16",
    "processor": {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14},
    "prompt": "Perform peg in hole insertion task.",
}
STEPS_PER_EPISODE = 200


def step_key(index: int, *, episodes: str = "episode") -> StepKey:
    """The key of the `index`-th small feature: episodes of 200 steps each."""
    episode, step = divmod(index, STEPS_PER_EPISODE)
    return StepKey(f"{episodes}_{episode:06d}", step * 30)


def video_key() -> VideoKey:
    """The key of the large feature."""
    return VideoKey("Video-MME", "benchmark", 128, "0" * 8)
