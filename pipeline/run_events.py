"""What happens in a build, one JSON object a line, written while it happens and read back afterwards.

docs/run-events.md lists the events and their fields.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FLUSH_EVERY_S = 0.5  # as long as anybody asks
MOST_WAITING = 500  # lines in memory
_TAIL_BYTES = 2**16
_encode = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: no reason then breaks a line, or cannot be written


class RunEvents:
    """Writes events as they come: `write` gets whole lines, at most half a second after the first of them."""

    def __init__(
        self, write: Callable[[str], None] = lambda text: None, *, about: Mapping[str, Any] | None = None
    ) -> None:
        """Begin with nothing; `about` becomes part of the first event."""
        self._write, self._about = write, dict(about or {})
        self._lines: list[str] = []
        self._started = self._flushed = time.monotonic()

    def now_s(self) -> float:
        """Return the seconds since the build's start."""
        return time.monotonic() - self._started

    def start(self, **fields: Any) -> None:
        """Note that the build starts: times count from here."""
        self._started = time.monotonic()
        self.note("start", {"time": round(time.time(), 3), **fields, **self._about})
        self.flush()

    def note(self, event: str, fields: Mapping[str, Any], *, at_s: float | None = None) -> None:
        """Note an event now, or at `at_s` since the build's start."""
        at_s = self.now_s() if at_s is None else at_s
        self._lines.append(_encode({"event": event, "t": round(at_s, 4), **fields}))
        if len(self._lines) >= MOST_WAITING:
            self.flush()

    def flush_if_due(self) -> None:
        """Write what waits if it has waited long enough; to be asked several times a second."""
        if self._lines and time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._flushed = time.monotonic()
        if self._lines:
            self._write("\n".join(self._lines) + "\n")
            self._lines = []


class Event(NamedTuple):
    """One event of a build."""

    name: str
    at_s: float  # since the build's start
    fields: Mapping[str, Any]  # the whole line


def read_events(path: Path, *, on_unreadable: Callable[[], None] = lambda: None) -> Iterator[Event]:
    """Yield the events of a file, in constant memory.

    A last line without its end, as a killed build leaves it, is passed over; `on_unreadable` hears of each other line
    that is no event.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            event = _event(line)
            if event is not None:
                yield event
            elif line.endswith("\n") and line.strip():
                on_unreadable()


def last_time_s(path: Path) -> float:
    """Return when the last event of a file was, in seconds since the build's start; 0 if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        tail = file.read().decode("utf-8", errors="surrogateescape")
    return max((event.at_s for line in tail.split("\n") if (event := _event(line)) is not None), default=0.0)


def _event(line: str) -> Event | None:
    try:
        fields = json.loads(line)
        event = Event(str(fields["event"]), float(fields["t"]), fields)
    except (ValueError, KeyError, TypeError):
        return None
    return event if math.isfinite(event.at_s) and event.at_s >= 0 else None
