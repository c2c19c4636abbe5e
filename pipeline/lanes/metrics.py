"""A build's figures as Ray metrics, which Ray exports for Prometheus with the prefix `ray_`."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.failures import UnitFailure
from pipeline.lanes.lane import Lane

_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
_COMMON = ("dataset", "run")
_LANE = ("lane", *_COMMON)


class Metrics:
    """The metrics of one build, to be made while Ray is connected.

    Counters are brought up to date a few times a second, because each call costs a few microseconds.
    """

    def __init__(self, *, dataset: str, run: str) -> None:
        def described(name: str, words: str, *tags: str) -> tuple[str, str, tuple[str, ...]]:
            return f"vlm_cache_{name}", words, (*_LANE, *tags)

        self._common = {"dataset": dataset, "run": run}
        self._built = Counter(*described("units_built", "Units whose feature was published."))
        self._failed = Counter(*described("units_failed", "Units that failed for good.", "stage", "error"))
        self._bytes = Counter(*described("bytes_written", "Bytes of the published files."))
        self._restarts = Counter(*described("process_restarts", "Processes that died and came back."))
        name, words, tags = described("stage_seconds", "Seconds of one unit in one stage.", "stage")
        self._stages = Histogram(name, words, _SECONDS, tags)
        self._queue = Gauge(*described("queue_bytes", "Bytes decoded or being decoded, not yet encoded."))
        self._busy = Gauge(*described("busy_share", "Share of the last 10 s that the device spent encoding, 0 to 1."))
        self._left = Gauge("vlm_cache_units_left", "Units still to build.", _COMMON)
        self._counted: Counts[tuple[str, str]] = Counts()  # what each counter has been told, by its name and lane

    def observe(self, lane: Lane, stage: str, seconds: float) -> None:
        """Count one unit's seconds in one stage."""
        self._stages.observe(seconds, {"lane": lane.name, "stage": stage, **self._common})

    def failed(self, failure: UnitFailure, lane: str) -> None:
        """Count one failed unit."""
        tags = {"lane": lane, "stage": failure.stage, "error": failure.error.value}
        self._failed.inc(1, {**tags, **self._common})

    def update(self, lanes: Sequence[Lane], *, left: int, now_s: float) -> None:
        """Bring counters and gauges up to date."""
        for lane in lanes:
            tags = {"lane": lane.name, **self._common}
            self._count("built", self._built, lane.done, tags)
            self._count("bytes", self._bytes, lane.pace.bytes, tags)
            self._count("restarts", self._restarts, sum(worker.restarts for worker in lane.workers), tags)
            self._queue.set(lane.bytes_in_flight.held, tags)
            self._busy.set(lane.pace.rates(now_s)[-1], tags)
        self._left.set(left, self._common)

    def close(self, lanes: Sequence[Lane]) -> None:
        """Set the gauges to nothing, or a driver that lives on would show the last moment for ever."""
        for lane in lanes:
            tags = {"lane": lane.name, **self._common}
            self._queue.set(0, tags)
            self._busy.set(0, tags)
        self._left.set(0, self._common)

    def _count(self, name: str, counter: Counter, total: int, tags: dict[str, str]) -> None:
        known = self._counted[name, tags["lane"]]
        if total > known:
            counter.inc(total - known, tags)
            self._counted[name, tags["lane"]] = total
