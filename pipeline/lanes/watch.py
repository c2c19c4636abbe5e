"""Hears of everything that happens in a build, and tells it: as events, as metrics, and as the pace of each lane.

Times are the driver's own, so that hosts whose clocks differ fit together: a stage ends when the driver hears of it,
and began as long before as the process says that it took.
"""

from __future__ import annotations

from pipeline.failures import UnitFailure
from pipeline.lanes.lane import Lane
from pipeline.lanes.metrics import Metrics
from pipeline.lanes.pace import Pace
from pipeline.lanes.report import BuildReport, failure_to_json
from pipeline.lanes.worker import Decoded, State, Work, Worker
from pipeline.run_events import RunEvents
from pipeline.unit_done import UnitDone


class Watch:
    """Watches one build. Nothing here decides anything."""

    def __init__(self, events: RunEvents, metrics: Metrics) -> None:
        self._events, self._metrics = events, metrics
        self.lanes: list[Lane] = []  # which the scheduler fills
        self._ended = Pace()  # units built or failed, over all lanes
        self._is_draining = False

    def ready(self, lane: Lane, worker: Worker, device: str) -> None:
        """Note that a process can work, for the first time or again."""
        self._events.note("ready", {**_process(lane, worker), "device": device})

    def lost(self, lane: Lane, worker: Worker, why: str) -> None:
        """Note that a process died or was ended; of each of its calls one may say so."""
        if worker.state is not State.DRAINING:
            self._events.note("lost", {**_process(lane, worker), "reason": why})

    def decoders_added(self, lane: Lane, added: int) -> None:
        """Note that a lane got more decoders."""
        self._events.note("decoders", {"lane": lane.name, "added": added, "decoders": len(lane.decoders)})

    def decoded(self, lane: Lane, work: Work, decode_s: float) -> None:
        """Note that a unit is decoded."""
        now_s = self._events.now_s()
        work.decoded = Decoded(lane.name, max(0.0, now_s - decode_s), now_s, work.attempts)
        lane.pace.decoded += 1
        self._metrics.observe(lane, "decode", decode_s)

    def built(self, lane: Lane, work: Work, result: UnitDone, *, by_lost_process: bool = False) -> None:
        """Note that a unit has its feature; a process that was lost meanwhile has taken its times with it."""
        now_s = self._events.now_s()
        pace = lane.pace
        pace.bytes += result.bytes
        fields: dict[str, object] = {"key": work.unit.name, "lane": lane.name, "bytes": result.bytes}
        decode_calls = 0
        if (decoded := work.decoded) is not None:
            fields["decode"] = [round(decoded.begin_s, 4), round(decoded.end_s, 4)]
            decode_calls = decoded.attempts
            if decoded.lane != lane.name:
                fields["decode_lane"] = decoded.lane
        if by_lost_process:
            fields["by_lost_process"] = True
        else:
            pace.encode_s += result.encode_s
            end_s = max(0.0, now_s - result.write_s)
            fields["encode"] = [round(max(0.0, end_s - result.encode_s), 4), round(end_s, 4)]
            self._metrics.observe(lane, "encode", result.encode_s)
            self._metrics.observe(lane, "write", result.write_s)
        self._events.note("unit", {**fields, "attempts": [decode_calls, work.attempts]}, at_s=now_s)

    def present(self, work: Work) -> None:
        """Note that another build has published a unit."""
        self._events.note("present", {"key": work.unit.name})

    def failed(self, failure: UnitFailure, worker: Worker | None) -> None:
        """Note that a unit has failed for good; without a process if its source calls it impossible."""
        lane = next((lane.name for lane in self.lanes if worker in lane.workers), "")
        self._events.note("failed", {**failure_to_json(failure), "lane": lane})
        self._metrics.failed(failure, lane)

    def tick(self, report: BuildReport, *, todo: int) -> float | None:
        """Look at the pace, write what waits; returns the seconds left at that pace, or None while that is unknown."""
        now_s = self._events.now_s()
        for lane in self.lanes:
            if lane.encoder.state is State.READY or lane.done:
                lane.pace.note(now_s, encoded=lane.done)
        ended = report.done + len(report.failed)
        if any(lane.encoder.state is State.READY for lane in self.lanes):
            self._ended.note(now_s, ended)
        self._metrics.update(self.lanes, left=todo - ended, now_s=now_s)
        if report.stopped is not None and not self._is_draining:
            self._is_draining = True
            self._events.note("drain", {"reason": report.stopped})
        self._events.flush_if_due()
        rate = self._ended.rate(now_s)
        return (todo - ended) / rate if rate > 0 else None

    def now_s(self) -> float:
        """Return the seconds since the build's start."""
        return self._events.now_s()

    def end(self, report: BuildReport) -> None:
        """Note the end."""
        self._events.note("end", end_fields(report))
        self._events.flush()
        self._metrics.close(self.lanes)


def end_fields(report: BuildReport) -> dict[str, object]:
    """Return the totals of a build: its report, with the failures only counted."""
    whole = report.to_json()
    del whole["ignored"]
    return {**whole, "failed": len(report.failed)}


def _process(lane: Lane, worker: Worker) -> dict[str, object]:
    return {"lane": lane.name, "process": f"{worker.kind}r", "host": worker.host, "restarts": worker.restarts}
