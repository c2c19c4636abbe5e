"""What `vlm-cache plan` found, as values and as the JSON that it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cache_store import Eviction
from pipeline.probe import Probe
from pipeline.size_estimate import SizeEstimate
from pipeline.time_estimate import LaneCount, TimeEstimate


@dataclass(frozen=True)
class StoreRoom:
    """The store as it is, and whether the build would fit under its limit beside what is pinned."""

    entries: int
    bytes: int
    limit_bytes: int | None
    pinned_bytes: int  # of features that the build does not want
    fits: bool


@dataclass(frozen=True)
class DiskRoom:
    """The disk under the store."""

    free_bytes: int
    needed_bytes: int  # the new features, less what they replace and what would be evicted for them
    fits: bool


@dataclass(frozen=True)
class PlanReport:
    """What a build would do."""

    todo: int
    skipped: int
    impossible: list[tuple[str, str]]  # (key, reason)
    size: SizeEstimate
    probe: Probe
    lanes: LaneCount
    time: TimeEstimate | None  # None where nothing was measured
    store: StoreRoom
    disk: DiskRoom | None  # None: the store is behind a URL
    eviction: Eviction
    own_bytes_evicted: int  # with --allow-eviction: of its own features, at least
    ignored: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    reasons: list[str] = field(default_factory=list)  # why it would not fit, or not make everything
    notes: list[str] = field(default_factory=list)  # what may not be as it seems, and a build says too

    @property
    def exit_status(self) -> int:
        """0 if the build would fit and nothing is impossible, else 1."""
        return 1 if self.reasons else 0

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.store.fits and (self.disk is None or self.disk.fits)

    @property
    def measured_bytes(self) -> int | None:
        """What the new features take if the probed ones are like the others."""
        mean = self.probe.bytes
        return None if mean is None else round(mean * self.todo)

    def to_json(self) -> dict[str, Any]:
        """Return what `plan --json` prints. Seconds and bytes; hours where the name says so."""
        time = None
        if self.time is not None:
            time = {**asdict(self.time), "device_hours": self.time.device_s / 3600}
        return {
            "todo": self.todo,
            "skipped": self.skipped,
            "impossible": [{"key": key, "reason": reason} for key, reason in self.impossible],
            "ignored": self.ignored,
            "bytes": {
                "new": self.size.new_bytes,
                "total": self.size.bytes,
                "is_upper_bound": self.size.is_upper_bound,
                "new_as_measured": self.measured_bytes,
            },
            "probe": {
                "device": self.probe.device,
                "units": [asdict(unit) for unit in self.probe.units],
                "failed": [
                    {"key": one.key, "stage": one.stage, "error": one.error.value, "reason": one.reason}
                    for one in self.probe.failed
                ],
                "decode_s": self.probe.decode_s,
                "encode_s": self.probe.encode_s,
                "bytes": self.probe.bytes,
            },
            "lanes": asdict(self.lanes),
            "time": time,
            "store": asdict(self.store),
            "disk": None if self.disk is None else asdict(self.disk),
            "evicts": {
                "entries": self.eviction.entries,
                "bytes": self.eviction.bytes,
                "own_bytes": self.own_bytes_evicted,
                "datasets": {name: one._asdict() for name, one in self.eviction.datasets.items()},
            },
            "fits": self.fits,
            "reasons": self.reasons,
            "notes": self.notes,
        }
