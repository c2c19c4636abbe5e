"""The yardstick: a model in a loop over frames that are where it needs them, and nothing else."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

BARE = "bare model loop"


def bare_pace(encoder: Any, pixels: np.ndarray, device: str, *, seconds: float) -> float:
    """Frames a second of an encoder over one unit's pixels on its device, with two forwards queued at most.

    The first forward comes before the clock starts. What a forward gives is dropped.
    """
    is_cuda = device.startswith("cuda")
    frames = torch.tensor(pixels).to(device)
    marks: list[Any] = []
    encoder.forward(frames)
    if is_cuda:
        torch.cuda.synchronize(device)
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        encoder.forward(frames)
        count += 1
        if is_cuda:
            marks.append(torch.cuda.current_stream(device).record_event())
            if len(marks) > 1:
                marks.pop(0).synchronize()
    if is_cuda:
        torch.cuda.synchronize(device)
    return count * len(pixels) / (time.perf_counter() - start_s)
