"""Why a unit gave no feature, told apart by what happened: the words of reports and dead letters."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from cache_store import StoreFull, StoreReadError, StoreWriteError
from pipeline.errors import MediaError

Stage = Literal["source", "decode", "encode", "write"]


class ErrorClass(str, Enum):
    """What kind of failure it was."""

    EXCEPTION = "exception"
    CRASH = "native crash"  # the process died
    HANG = "hang"  # no result within the stage's time limit
    OUT_OF_MEMORY = "out of memory"  # of the host or of the device
    BAD_MEDIA = "bad media"
    BAD_DISK = "bad disk"  # it failed, is full, or the store's limit leaves no room


@dataclass(frozen=True)
class UnitFailure:
    """Why one unit gave no feature.

    `stops_build`: the same would fail every other unit too. `spoils_process`: the process cannot be trusted with
    another unit, and must be started anew.
    """

    key: str
    stage: Stage
    reason: str
    error: ErrorClass = ErrorClass.EXCEPTION
    stops_build: bool = False
    spoils_process: bool = False
    attempts: int = 1  # calls of this stage
    host: str = ""  # where the last of them ran
    recipe: str = ""  # the unit's fingerprint


# What the disk, not the file, answers.
_DISK_ERRORS = frozenset(
    (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO)
)
# Narrow on purpose: a wrong match would split a unit that fails for another reason.
_OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory")
# After these every later call on the device fails too.
_SPOILED = ("CUDA error", "device-side assert", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED")


def failure_of(exc: BaseException, *, key: str, stage: Stage) -> UnitFailure:
    """Name what one unit's stage raised."""
    error = _class_of(exc, stage)
    told = isinstance(exc, MediaError | StoreWriteError | StoreFull | StoreReadError)
    reason = str(exc) if told else f"{type(exc).__name__}: {exc}"
    stops = stage == "write" and error is ErrorClass.BAD_DISK
    return UnitFailure(key, stage, reason, error, stops_build=stops, spoils_process=spoils_process(exc))


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether host or device had no memory left; the process itself is sound."""
    # A process without torch, such as a decoder, has none of its errors.
    if isinstance(exc, MemoryError) or ("torch" in sys.modules and _is_torchs_out_of_memory(exc)):
        return True
    return isinstance(exc, RuntimeError) and any(text in str(exc) for text in _OUT_OF_MEMORY)


def _is_torchs_out_of_memory(exc: BaseException) -> bool:
    import torch

    return isinstance(exc, torch.cuda.OutOfMemoryError)


def spoils_process(exc: BaseException) -> bool:
    """Whether the error leaves the device's context unusable, so that every later unit would fail in this process."""
    return isinstance(exc, RuntimeError) and not is_out_of_memory(exc) and any(text in str(exc) for text in _SPOILED)


def _class_of(exc: BaseException, stage: Stage) -> ErrorClass:
    if is_out_of_memory(exc):
        return ErrorClass.OUT_OF_MEMORY
    if isinstance(exc, StoreWriteError | StoreFull | StoreReadError) or _is_of_disk(exc):
        return ErrorClass.BAD_DISK
    if isinstance(exc, OSError) and stage == "write":
        return ErrorClass.BAD_DISK
    return ErrorClass.BAD_MEDIA if isinstance(exc, MediaError | OSError) else ErrorClass.EXCEPTION


def _is_of_disk(exc: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from, is the disk's own."""
    seen = 0
    while exc is not None and seen < 10:
        if isinstance(exc, OSError) and exc.errno in _DISK_ERRORS:
            return True
        exc, seen = exc.__cause__, seen + 1
    return False
