"""Times contestants in turns, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Contestant:
    """One way to do the same work: `run(round_number)` does it `operations` times and is timed as a whole.

    `prepare(round_number)` comes before it, untimed. Rounds count from 0; round 0 warms up and is not kept.
    """

    name: str
    operations: int
    run: Callable[[int], object]
    prepare: Callable[[int], object] | None = None
    most_ratio: float | None = None  # the target: at most this many times the base
    note: str = ""


def interleaved_s(
    contestants: Sequence[Contestant], *, rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds per operation of each contestant by name, one figure for each round.

    Every round runs all contestants one after another; Python's garbage collector is off inside timed parts.
    """
    times_s: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_number in range(rounds + 1):
        for contestant in contestants:
            if contestant.prepare is not None:
                contestant.prepare(round_number)
            taken_s = seconds_of(lambda run=contestant.run, number=round_number: run(number), clock)  # type: ignore[misc]
            if round_number > 0:
                times_s[contestant.name].append(taken_s / contestant.operations)
    return times_s


def seconds_of(work: Callable[[], object], clock: Callable[[], float] | None = None) -> float:
    """Seconds of one call by `clock` (by default the wall's), without garbage collection inside."""
    clock = clock or time.perf_counter
    with _no_garbage_collection():
        start_s = clock()
        work()
        return clock() - start_s


def ratios_to(base: str, times_s: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Every contestant's time over the base's time of the same round."""
    return {
        name: [time_s / base_s for time_s, base_s in zip(of_one, times_s[base], strict=True)]
        for name, of_one in times_s.items()
    }


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
