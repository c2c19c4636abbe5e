"""Copies between the host and one device, beside what the device computes: pinned memory and streams of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class OnDevice:
    """What a forward gave: on CUDA perhaps still being computed, until `Transfer.to_host` has waited for it."""

    value: torch.Tensor
    seconds: float  # of the forward; on CUDA `marks` know
    marks: tuple[Any, Any] | None = None  # CUDA events before and after the forward


class Transfer:
    """Moves pixels to one device and features back; safe for threads. On the CPU both are plain copies."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._downloads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def to_device(self, pixels: np.ndarray) -> torch.Tensor:
        """Copy uint8 pixels to the device and wait for their arrival; the source may be read-only, as Ray's arrays are.

        Raises:
            torch.cuda.OutOfMemoryError: no room there.
        """
        if self._device.type != "cuda":
            return torch.tensor(pixels)
        host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        host.numpy()[...] = pixels
        with torch.cuda.stream(self._uploads):
            moved = host.to(self._device, non_blocking=True)
        # Else the allocator would hand this memory to the next upload while a forward still reads it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        self._uploads.record_event().synchronize()
        return moved

    def run(self, forward: Callable[[], torch.Tensor]) -> OnDevice:
        """Run a forward on the device's default stream; on CUDA without waiting for its end."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            value = forward()
            return OnDevice(value, time.perf_counter() - started)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record(torch.cuda.default_stream(self._device))
        value = forward()
        after.record(torch.cuda.default_stream(self._device))
        return OnDevice(value, 0.0, (before, after))

    def to_host(self, result: OnDevice) -> tuple[torch.Tensor, float]:
        """Wait for a forward and copy what it gave; returns a CPU tensor with storage of its own, and the seconds.

        Raises whatever the device has to tell of the forward.
        """
        value = result.value
        # A slice would be stored with all it was cut from; inference tensors refuse later use in autograd.
        with torch.inference_mode(mode=False):
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=result.marks is not None)
            if result.marks is None:
                return host.copy_(value), result.seconds
        before, after = result.marks
        self._downloads.wait_event(after)
        with torch.cuda.stream(self._downloads):
            host.copy_(value, non_blocking=True)
        value.record_stream(self._downloads)
        self._downloads.record_event().synchronize()
        return host, before.elapsed_time(after) / 1000
