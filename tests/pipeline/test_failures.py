"""Failures are told apart by what was raised; only a narrow match counts as out of memory or as a spoiled device."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from cache_store import StoreFull, StoreWriteError
from pipeline.errors import EncoderError, MediaError
from pipeline.failures import ErrorClass, UnitFailure, failure_of

ON_A_BAD_DISK = OSError(errno.EIO, "Input/output error")
CUDA_ASSERT = RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")


@pytest.mark.parametrize(
    ("exc", "stage", "expected"),
    [
        (MediaError("cut short"), "decode", ErrorClass.BAD_MEDIA),
        (FileNotFoundError(errno.ENOENT, "gone"), "decode", ErrorClass.BAD_MEDIA),
        (ValueError("odd"), "decode", ErrorClass.EXCEPTION),
        (ON_A_BAD_DISK, "decode", ErrorClass.BAD_DISK),
        (MemoryError(), "decode", ErrorClass.OUT_OF_MEMORY),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. 2 GiB"),
            "encode",
            ErrorClass.OUT_OF_MEMORY,
        ),
        (RuntimeError("CUDA error: out of memory"), "encode", ErrorClass.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "encode", ErrorClass.OUT_OF_MEMORY),
        (RuntimeError("the memory of this video is out of order"), "encode", ErrorClass.EXCEPTION),
        (CUDA_ASSERT, "encode", ErrorClass.EXCEPTION),
        (EncoderError("no image"), "encode", ErrorClass.EXCEPTION),
        (StoreWriteError("a.pt", OSError(errno.ENOSPC, "No space left")), "write", ErrorClass.BAD_DISK),
        (StoreFull("pinned", limit_bytes=1, needed_bytes=2), "write", ErrorClass.BAD_DISK),
        (TypeError("cannot be stored"), "write", ErrorClass.EXCEPTION),
    ],
)
def test_each_error_has_its_class(exc, stage, expected):
    failure = failure_of(exc, key="a", stage=stage)
    assert failure.error is expected
    assert failure.stops_build == (stage == "write" and expected is ErrorClass.BAD_DISK)
    assert failure.spoils_process == (exc is CUDA_ASSERT)


def test_a_bad_disk_behind_a_media_error_is_still_a_bad_disk():
    error = MediaError("a.mp4 cannot be read")
    error.__cause__ = ON_A_BAD_DISK
    assert failure_of(error, key="a", stage="decode").error is ErrorClass.BAD_DISK


def test_a_failure_crosses_processes():
    failure = UnitFailure("a", "encode", "hm", ErrorClass.HANG, spoils_process=True)
    assert pickle.loads(pickle.dumps(failure)) == failure
