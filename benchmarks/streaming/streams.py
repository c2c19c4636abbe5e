"""What is measured on: a model loaded once, frames, streams of a length, and operations that wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from benchmarks.streaming.scale import Scale
from consumers.streaming import EvictionConfig, VideoStreamingInference, load_streaming_model

_ENDLESS = 2**40  # tokens; what is measured is the cost of length, not what the model was trained on


@lru_cache(maxsize=1)
def loaded(model: str, device: str, dtype: str | None) -> tuple[Any, Any]:
    """Return the model, on its device, and its processor."""
    return load_streaming_model(model, device, dtype=dtype)


def new_stream(scale: Scale, eviction: EvictionConfig | None = None) -> VideoStreamingInference:
    """Return an empty stream; frames keep their size, whatever the processor's bounds."""
    model, processor = loaded(scale.model, scale.device, scale.dtype)
    return VideoStreamingInference(
        model, processor, eviction_config=eviction, max_context_tokens=_ENDLESS, min_pixels=1, max_pixels=_ENDLESS
    )


def chunk_of(scale: Scale, number: int = 0) -> list[np.ndarray]:
    """Return one chunk of frames of coarse noise; another number, other frames."""
    noise = np.random.default_rng(number).integers(0, 256, (scale.chunk_frames, 8, 8, 3), dtype=np.uint8)
    times = -(-scale.side // 8)
    return [frame.repeat(times, axis=0).repeat(times, axis=1)[: scale.side, : scale.side] for frame in noise]


def grown(scale: Scale, tokens: int) -> VideoStreamingInference:
    """Return a stream with a cache of at least so many tokens."""
    stream, chunk = new_stream(scale), chunk_of(scale)
    while stream.get_cache_info()["cache_seq_length"] < tokens:
        stream.append_video_chunk(chunk)
    return stream


def waiting(device: str, work: Callable[[], object]) -> Callable[[int], None]:
    """Return `work` as a contestant's run, which ends when the device has done everything."""

    def run(_round: int) -> None:
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    return run


def repeated(times: int, work: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does `work` so often."""

    def run() -> None:
        for _ in range(times):
            work()

    return run
