"""What the lanes of a run did when, in memory that does not grow with the run: each unit's bars, or shares of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

STAGES = ("decode", "encode", "write")
MOST_UNITS = 500  # with bars of their own
STEPS = 240  # of a long run's timeline
_RATE_STEPS = 120
_UNITS_PER_STEP = 4.0  # at least, on average, or a rate would only jump


class Timeline:
    """Bars of stages by lane, and units by time. Of more than `MOST_UNITS` units only the shares of time are kept."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = max(duration_s, 1e-3)
        self.bars: dict[tuple[str, str], list[tuple[float, float]]] | None = {}  # by lane and stage; in seconds
        self._busy_s: dict[tuple[str, str], np.ndarray] = {}  # seconds by lane and stage, [STEPS]
        self._units: Counter[int] = Counter()  # by step of the rate
        self._seen = 0

    def add(self, lane: str, stage: str, begin_s: float, end_s: float) -> None:
        """Add the time that one unit was in one stage."""
        begin_s, end_s = max(0.0, begin_s), min(self.duration_s, end_s)
        if end_s < begin_s:
            return
        if self.bars is not None:
            self.bars.setdefault((lane, stage), []).append((begin_s, end_s))
        busy_s = self._busy_s.setdefault((lane, stage), np.zeros(STEPS))
        step_s = self.duration_s / STEPS
        first, last = (min(STEPS - 1, int(at_s / step_s)) for at_s in (begin_s, end_s))
        if first == last:
            busy_s[first] += end_s - begin_s
            return
        busy_s[first] += (first + 1) * step_s - begin_s
        busy_s[first + 1 : last] += step_s
        busy_s[last] += end_s - last * step_s

    def add_unit(self, at_s: float) -> None:
        """Count one finished unit."""
        self._seen += 1
        self._units[min(_RATE_STEPS - 1, int(at_s / self.duration_s * _RATE_STEPS))] += 1
        if self._seen > MOST_UNITS:
            self.bars = None

    def shares(self, lane: str, stage: str, *, processes: int = 1) -> np.ndarray:
        """Return the share of time that `processes` worked on something in a stage, float64 [STEPS], 0 to 1."""
        busy_s = self._busy_s.get((lane, stage), np.zeros(STEPS))
        return np.minimum(1.0, busy_s / (self.duration_s / STEPS * max(1, processes)))

    def rates(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return the borders of equal steps of time in seconds, one more than steps, and units per second in each."""
        together = next((n for n in (1, 2, 3, 4, 6, 8, 12, 20) if self._seen * n / _RATE_STEPS >= _UNITS_PER_STEP), 24)
        step_s = self.duration_s / _RATE_STEPS * together
        steps = _RATE_STEPS // together
        counts = [sum(self._units[step * together + part] for part in range(together)) for step in range(steps)]
        return [step * step_s for step in range(steps + 1)], [count / step_s for count in counts]
