"""How fast a lane is of late: of each of its totals, by how much it has grown within the last seconds."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0


class Pace:
    """The growth of one total, measured from change to change.

    So a unit that takes longer than the window counts in full, and nothing changes between its start and its end.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()  # (seconds, total) at the changes

    def note(self, now_s: float, total: float) -> None:
        """Note a total; the first one is where measuring begins."""
        if not self._marks or total != self._marks[-1][1]:
            self._marks.append((now_s, total))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.popleft()

    def rate(self, now_s: float) -> float:
        """Return the growth per second; 0 before the first change. Silence counts once it is longer than usual."""
        if len(self._marks) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        usual_s = (last_s - first_s) / (len(self._marks) - 1)
        until_s = now_s if now_s - last_s > 2 * usual_s else last_s
        return (last - first) / max(until_s - first_s, 1e-9)


class LanePace:
    """What one lane has done, and how fast it is."""

    def __init__(self) -> None:
        self.decoded = 0  # units
        self.bytes = 0  # written
        self.encode_s = 0.0  # that the device spent encoding
        self._decoding, self._encoding, self._writing, self._device = (Pace() for _ in range(4))

    def note(self, now_s: float, *, encoded: int) -> None:
        """Look at the totals; to be called several times a second, from when the lane can work."""
        self._decoding.note(now_s, self.decoded)
        self._encoding.note(now_s, encoded)
        self._writing.note(now_s, self.bytes)
        self._device.note(now_s, self.encode_s)

    def rates(self, now_s: float) -> tuple[float, float, float, float]:
        """Return units decoded, units encoded and bytes written per second, and the device's busy share, 0 to 1."""
        rates = (pace.rate(now_s) for pace in (self._decoding, self._encoding, self._writing, self._device))
        decoded, encoded, written, busy = rates
        return decoded, encoded, written, min(1.0, busy)
