"""Calls one after another on a thread of their own, given up by who waits for them when one runs too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

T = TypeVar("T")
_LOOKS_PER_LIMIT = 20  # how often a waiting caller looks at the clock within one time limit


class Hung(Exception):
    """A call has run longer than its limit; its thread is lost."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no result after {limit_s:g} s")


class OneAtATime:
    """A thread that runs calls in the order in which they come. The time that a call waits for its turn is free."""

    def __init__(self, name: str, *, limit_s: float) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._limit_s = limit_s

    def run(self, call: Callable[[], T]) -> T:
        """Run `call` when its turn comes and return what it returns, or raise what it raises.

        Raises:
            Hung: it has been running for longer than the limit.
        """
        started: list[float] = []

        def timed() -> T:
            started.append(time.monotonic())
            return call()

        future: Future[T] = self._pool.submit(timed)
        while not future.done():
            try:
                return future.result(timeout=self._limit_s / _LOOKS_PER_LIMIT)
            except FutureTimeout:
                # The call may have raised the same; then the future is done, and tells it again below.
                if started and time.monotonic() - started[0] > self._limit_s and not future.done():
                    raise Hung(self._limit_s) from None
        return future.result()
