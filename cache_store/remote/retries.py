"""Tries a request again where the service or the line failed, and not where the answer was clear; within bounds."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# What another try would be told again.
_CLEAR_ANSWERS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    MemoryError,
    TypeError,
    ValueError,
)
_CLEAR_ERRNOS = frozenset(
    {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMSGSIZE, errno.EREMCHG}
)
# Of botocore, which is not imported for its names: no class tells them from a failing line.
_CLEAR_NAMES = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"})

logger = logging.getLogger("cache_store")


class Unreachable(OSError):
    """The service failed at every try; `strerror` says how often, how long and what it said last."""


@dataclass(frozen=True)
class Patience:
    """How often and how long a request is tried; delays double, each drawn from zero to what it may be."""

    tries: int = 7
    first_delay_s: float = 0.2
    longest_delay_s: float = 10.0
    total_s: float = 120.0


PATIENCE = Patience()


def is_transient(exc: Exception) -> bool:
    """Whether another try may go better."""
    if isinstance(exc, _CLEAR_ANSWERS) or type(exc).__name__ in _CLEAR_NAMES:
        return False
    return not (isinstance(exc, OSError) and exc.errno in _CLEAR_ERRNOS)


def patiently(call: Callable[[], T], *, failed: Callable[[], None]) -> T:
    """What `call` returns, after as many tries as it takes; `failed` is called after each one that did not go well.

    Raises:
        Unreachable: every try failed.
        Exception: what `call` raised, where another try would be told the same.
    """
    began_s = time.monotonic()
    for attempt in range(PATIENCE.tries):
        try:
            return call()
        except Exception as exc:
            # Each file system has errors of its own, of no common class.
            if not is_transient(exc):
                raise
            failed()
            delay_s = random.uniform(0, min(PATIENCE.longest_delay_s, PATIENCE.first_delay_s * 2**attempt))
            spent_s = time.monotonic() - began_s
            if attempt + 1 == PATIENCE.tries or spent_s + delay_s > PATIENCE.total_s:
                said = f"{type(exc).__name__}: {exc}".rstrip(": ")
                reason = f"unreachable: {attempt + 1} tries in {spent_s:.0f} s, the last said {said[:300]}"
                raise Unreachable(errno.ETIMEDOUT, reason) from exc
            logger.info("try %d failed (%s), another in %.1f s", attempt + 1, exc, delay_s)
            time.sleep(delay_s)
    raise AssertionError("the loop returns or raises")
