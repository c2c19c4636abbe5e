"""The sessions of a demo's open tabs, by the name that each tab has; there are never more than allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from consumers.streaming.demo.refusal import DemoRefused
from consumers.streaming.demo.session import DemoSession


class NoRoom(DemoRefused):
    """As many tabs as allowed have a stream."""


class SessionRegistry:
    """A tab gets its session when it first needs one, and loses it when it closes.

    A tab whose closing nobody noticed loses it after `idle_s` seconds without a sign of life. All methods may be called
    from any thread.
    """

    def __init__(self, make: Callable[[], DemoSession], *, max_sessions: int, idle_s: float = 600.0) -> None:
        self._make, self._max_sessions, self._idle_s = make, max_sessions, idle_s
        self._lock = threading.Lock()
        self._sessions: dict[str, DemoSession] = {}
        self._last_seen: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[DemoSession]:
        """Return the sessions of all tabs."""
        return list(self._sessions.values())

    def find(self, name: str) -> DemoSession | None:
        """Return a tab's session if it has one; counts as a sign of life."""
        self._close_idle()
        with self._lock:
            if name in self._sessions:
                self._last_seen[name] = time.monotonic()
            return self._sessions.get(name)

    def get(self, name: str) -> DemoSession:
        """Return a tab's session, a new one where it has none.

        Raises:
            NoRoom: there are as many as allowed.
        """
        self._close_idle()
        with self._lock:
            if name not in self._sessions:
                if len(self._sessions) >= self._max_sessions:
                    raise NoRoom(
                        f"All {self._max_sessions} places are taken. Try again when another tab has been closed."
                    )
                self._sessions[name] = self._make()
            self._last_seen[name] = time.monotonic()
            return self._sessions[name]

    def close(self, name: str) -> None:
        """End a tab's session and free what it holds. A tab without one: does nothing."""
        with self._lock:
            session = self._sessions.pop(name, None)
            self._last_seen.pop(name, None)
        if session is not None:
            session.close()

    def close_all(self) -> None:
        """End all sessions."""
        for name in list(self._sessions):
            self.close(name)

    def _close_idle(self) -> None:
        oldest = time.monotonic() - self._idle_s
        for name in [name for name, seen in list(self._last_seen.items()) if seen < oldest]:
            self.close(name)
