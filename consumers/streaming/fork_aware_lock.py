"""A lock that is free in a forked child, and knows whether it was held when its process was forked."""

from __future__ import annotations

import os
import threading
import weakref

from consumers.streaming.errors import ForkedAmidChange


class ForkAwareLock:
    """A reentrant lock, to be used by `with`. A forked child has it free, unless the forking thread held it.

    Of its parent's threads a child has the forking one alone, so a lock of another one would never be free in it, and
    what that thread was changing stays half-changed.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._was_held = False  # by a thread that this process lacks
        _ALL.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def check_whole(self) -> None:
        """Check that what the lock guards was not left half-changed by a fork.

        Raises:
            ForkedAmidChange: it may be.
        """
        if self._was_held:
            raise ForkedAmidChange(
                "this process was forked while another thread was at work on the stream, which may be half-changed "
                "here: reset() to begin anew, and fork between calls"
            )

    def begin_anew(self) -> None:
        """Note that what the lock guards is whole again."""
        self._was_held = False


_ALL: weakref.WeakSet[ForkAwareLock] = weakref.WeakSet()


def _note_fork() -> None:
    for one in _ALL:
        if one._lock.acquire(blocking=False):
            one._lock.release()
        else:
            one._lock, one._was_held = threading.RLock(), True


os.register_at_fork(after_in_child=_note_fork)
