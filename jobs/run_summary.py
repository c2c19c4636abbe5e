"""What a run's folder tells of its build, finished, killed or still running, added up in bounded memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.run_files import BUILD, EVENTS, REPORT, read_object
from jobs.run_timeline import Timeline
from pipeline.errors import BuildRefused
from pipeline.run_events import Event, last_time_s, read_events

SLOWEST = 20
_MOST_DEATHS = 200  # with their time and reason; all are counted


@dataclass
class LaneSummary:
    """One lane. Seconds are added up over its processes, and over the threads that write."""

    name: str
    device: str = ""
    host: str = ""
    units: int = 0
    bytes: int = 0
    decode_s: float = 0.0
    encode_s: float = 0.0
    write_s: float = 0.0
    decoders: int = 0
    restarts: int = 0
    ready_s: float | None = None  # when its encoder could work

    def busy_share(self, until_s: float) -> float:
        """Return the share of its time, from when its encoder could work, that the device spent encoding."""
        if self.ready_s is None or until_s <= self.ready_s:
            return 0.0
        return min(1.0, self.encode_s / (until_s - self.ready_s))


@dataclass(frozen=True, order=True)
class SlowUnit:
    """One unit that took long."""

    seconds: float  # in all three stages, without waiting between them
    key: str
    lane: str
    decode_s: float
    encode_s: float
    write_s: float
    bytes: int


@dataclass
class RunSummary:
    """A run."""

    folder: Path
    timeline: Timeline
    build: Mapping[str, Any]  # what was asked for
    totals: Mapping[str, Any] = field(default_factory=dict)  # of the report; empty unless the build came to its end
    started: float | None = None  # seconds since the epoch
    todo: int = 0
    skipped: int = 0
    present: int = 0  # built by others meanwhile
    built: int = 0
    bytes: int = 0
    last_s: float = 0.0  # when the last event was
    last_unit_s: float = 0.0
    lanes: dict[str, LaneSummary] = field(default_factory=dict)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)  # by stage and error
    deaths: list[tuple[float, str, str, str]] = field(default_factory=list)  # time, lane, process, reason
    restarts: int = 0
    errors: list[str] = field(default_factory=list)  # what ended the build without a report
    drained: str | None = None
    slowest: list[SlowUnit] = field(default_factory=list)  # slowest first
    unreadable: int = 0  # lines

    @property
    def is_finished(self) -> bool:
        """Whether the build came to its end, so that its totals are known."""
        return bool(self.totals)

    @property
    def seconds(self) -> float:
        """How long the build took, or has been seen at work."""
        return float(self.totals.get("seconds", self.last_s))

    @property
    def failed(self) -> int:
        """Units that failed."""
        return sum(self.failures.values())

    @property
    def not_started(self) -> int:
        """Units that nobody has begun, or whose end is not known."""
        return max(0, int(self.totals.get("not_started", self.todo - self.built - self.present - self.failed)))

    @property
    def working_s(self) -> float:
        """The time from when the first encoder could work to the last unit."""
        ready = [lane.ready_s for lane in self.lanes.values() if lane.ready_s is not None]
        return max(0.0, self.last_unit_s - min(ready)) if ready else 0.0

    @property
    def units_per_s(self) -> float | None:
        """Units per second while there were encoders; None for a run too short to tell."""
        return self.built / self.working_s if self.built and self.working_s > 0 else None

    def bare_units_per_s(self, bare: float | None) -> float | None:
        """Return what the encoders alone would do: `bare` of each lane, else their own pace when they never wait."""
        if bare is not None:
            return bare * len(self.lanes) or None
        encode_s = sum(lane.encode_s for lane in self.lanes.values())
        return len(self.lanes) * self.built / encode_s if encode_s > 0 and self.built else None

    def to_json(self, bare: float | None) -> dict[str, Any]:
        """Return the figures as `report --json` prints them."""
        alone, rate = self.bare_units_per_s(bare), self.units_per_s
        return {
            "folder": str(self.folder),
            "started": self.started,
            "finished": self.is_finished,
            "stopped": self.totals.get("stopped") or self.drained,
            "errors": self.errors,
            "seconds": self.seconds,
            "working_seconds": round(self.working_s, 3),
            "todo": self.todo,
            "done": self.built,
            "skipped": self.skipped + self.present,
            "failed": self.failed,
            "not_started": self.not_started,
            "bytes": self.bytes,
            "restarts": self.restarts,
            "units_per_s": rate,
            "bare_units_per_s": alone,
            "share_of_bare": rate / alone if rate and alone else None,
            "failures": [
                {"stage": stage, "error": error, "units": count}
                for (stage, error), count in self.failures.most_common()
            ],
            "lanes": [
                {**asdict(lane), "busy_share": lane.busy_share(self.last_unit_s)} for lane in self.lanes.values()
            ],
            "slowest": [asdict(unit) for unit in self.slowest],
            "unreadable_lines": self.unreadable,
        }


def read_run(folder: Path) -> RunSummary:
    """Add up a run's folder.

    Raises:
        BuildRefused: there is no run in it, or one without events.
    """
    try:
        duration_s = last_time_s(folder / EVENTS)
        summary = RunSummary(folder, Timeline(duration_s), read_object(folder / BUILD))
        for event in read_events(folder / EVENTS, on_unreadable=lambda: _count_unreadable(summary)):
            try:
                _take(summary, event)
            except (KeyError, TypeError, ValueError, AttributeError):
                _count_unreadable(summary)
    except OSError as exc:
        raise BuildRefused(f"{folder} holds no events of a build: {exc}") from exc
    if report := read_object(folder / REPORT):
        summary.totals = report
    summary.slowest.sort(reverse=True)
    summary.lanes = dict(sorted(summary.lanes.items(), key=lambda item: (len(item[0]), item[0])))
    return summary


def _count_unreadable(summary: RunSummary) -> None:
    summary.unreadable += 1


def _take(summary: RunSummary, event: Event) -> None:
    fields = event.fields
    summary.last_s = max(summary.last_s, event.at_s)
    if event.name == "unit":
        _take_unit(summary, event)
    elif event.name == "present":
        summary.present += 1
    elif event.name == "failed":
        summary.failures[str(fields["stage"]), str(fields["error"])] += 1
    elif event.name == "start":
        summary.started, summary.todo = float(fields["time"]), int(fields["todo"])
        summary.skipped = int(fields["skipped"])
    elif event.name == "drain":
        summary.drained = str(fields["reason"])
    elif event.name == "error":
        summary.errors.append(str(fields["reason"]))
    elif event.name == "end":
        summary.totals = fields
    elif event.name in ("ready", "lost", "decoders"):
        _take_process(summary, event)


def _take_unit(summary: RunSummary, event: Event) -> None:
    fields, timeline = event.fields, summary.timeline
    lane = _lane(summary, fields["lane"])
    decode_lane = _lane(summary, fields.get("decode_lane", fields["lane"]))
    size = int(fields["bytes"])
    taken_s = {"decode": 0.0, "encode": 0.0, "write": 0.0}
    spans = [("decode", decode_lane, fields.get("decode")), ("encode", lane, fields.get("encode"))]
    if (encoded := fields.get("encode")) is not None:
        spans.append(("write", lane, (encoded[1], event.at_s)))
    for stage, where, span in spans:
        if span is not None:
            begin_s, end_s = float(span[0]), float(span[1])
            taken_s[stage] = max(0.0, end_s - begin_s)
            timeline.add(where.name, stage, begin_s, end_s)
    decode_lane.decode_s += taken_s["decode"]
    lane.encode_s += taken_s["encode"]
    lane.write_s += taken_s["write"]
    lane.units += 1
    lane.bytes += size
    timeline.add_unit(event.at_s)
    summary.built += 1
    summary.bytes += size
    summary.last_unit_s = max(summary.last_unit_s, event.at_s)
    decode_s, encode_s, write_s = taken_s.values()
    whole_s = decode_s + encode_s + write_s
    unit = SlowUnit(whole_s, str(fields["key"]), lane.name, decode_s, encode_s, write_s, size)
    if len(summary.slowest) < SLOWEST:
        heapq.heappush(summary.slowest, unit)
    elif unit > summary.slowest[0]:
        heapq.heapreplace(summary.slowest, unit)


def _take_process(summary: RunSummary, event: Event) -> None:
    fields = event.fields
    lane = _lane(summary, fields["lane"])
    if event.name == "decoders":
        lane.decoders = max(lane.decoders, int(fields["decoders"]))
    elif event.name == "lost":
        lane.restarts += 1
        summary.restarts += 1
        if len(summary.deaths) < _MOST_DEATHS:
            summary.deaths.append((event.at_s, lane.name, str(fields["process"]), str(fields["reason"])))
    elif fields["process"] == "encoder":
        lane.device, lane.host = str(fields["device"]), str(fields["host"])
        lane.ready_s = event.at_s if lane.ready_s is None else lane.ready_s


def _lane(summary: RunSummary, name: object) -> LaneSummary:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} names no lane")
    return summary.lanes.setdefault(name, LaneSummary(name))
