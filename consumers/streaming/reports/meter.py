"""Seconds and bytes of work on one device, the host included: the CPU, or a GPU through CUDA's own counters."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # what makes Linux forget a process's high-water mark; see proc(5), clear_refs


class Meter:
    """Measures work on `device`.

    On a GPU memory is what torch has allocated there. On the CPU it is the whole process, as the kernel counts it: it
    holds Python and the decoder too, and what is freed may come back late.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.baseline_bytes = 0  # in use when `begin` was called

    @property
    def memory_counted(self) -> str:
        """In words, whose memory it is."""
        return "allocated by torch on the GPU" if self._is_gpu else "of the whole process"

    @property
    def _is_gpu(self) -> bool:
        return self._device.type == "cuda"

    def timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """Return what `work` returns, and its seconds with everything that it left to the device."""
        self._wait()
        started = time.perf_counter()
        result = work()
        self._wait()
        return result, time.perf_counter() - started

    def _wait(self) -> None:
        if self._is_gpu:
            torch.cuda.synchronize(self._device)

    def begin(self) -> None:
        """Let go of what nobody uses, and count from what is then in use.

        Where the kernel does not let the peak begin anew, it never falls.
        """
        gc.collect()
        if self._is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self.baseline_bytes = int(torch.cuda.memory_allocated(self._device))
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and would serve the next part from it
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        self.baseline_bytes = _of_process("VmRSS")

    def peak_bytes(self) -> int:
        """Return how much more than at the beginning was in use at most."""
        peak = int(torch.cuda.max_memory_allocated(self._device)) if self._is_gpu else _of_process("VmHWM")
        return max(0, peak - self.baseline_bytes)

    def free_bytes(self) -> int | None:
        """Return how much more there is to have; None where nobody tells."""
        if self._is_gpu:
            return int(torch.cuda.mem_get_info(self._device)[0])
        return _field(Path("/proc/meminfo"), "MemAvailable")


def _of_process(name: str) -> int:
    found = _field(_PROCESS / "status", name)
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _field(path: Path, name: str) -> int | None:
    """Return a field of a file of the kernel's, `Name:  123 kB`, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
