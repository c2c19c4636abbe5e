"""What a build tells: progress while it runs, and the report at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.failures import UnitFailure


@dataclass
class StageSeconds:
    """Seconds that the build's processes spent in each stage, added up over all of them."""

    decode: float = 0.0
    encode: float = 0.0
    write: float = 0.0


@dataclass(frozen=True)
class LaneProgress:
    """One lane at one moment."""

    name: str
    state: str  # "starting", "running", "recovering" or "idle"
    device: str  # "cpu", "cuda:0"; empty until the model is loaded
    done: int
    decoders: int
    decoded_per_s: float  # units, over the last 10 s or the last unit, as all rates here
    encoded_per_s: float  # units
    written_per_s: float  # bytes
    busy_share: float  # of the time that the device spent encoding, 0 to 1
    queue_bytes: int  # decoded or being decoded, not yet encoded
    restarts: int  # processes of this lane that died and came back


@dataclass(frozen=True)
class Progress:
    """The build at one moment."""

    todo: int  # units to build in all
    done: int
    skipped: int
    failed: int
    bytes_written: int
    seconds: float
    seconds_left: float | None  # at the pace of the last 10 s; None while that is unknown
    lanes: tuple[LaneProgress, ...]
    last_failure: UnitFailure | None


@dataclass
class BuildReport:
    """The outcome of a build. `done + skipped + len(failed) + not_started` is the number of samples."""

    done: int = 0
    skipped: int = 0
    failed: list[UnitFailure] = field(default_factory=list)
    not_started: int = 0
    bytes: int = 0  # of the files published by this build
    seconds: float = 0.0
    restarts: int = 0  # processes that died and came back
    split: int = 0  # units encoded in smaller batches than asked for, because the device had no memory
    stopped: str | None = None  # why the build ended before its plan did
    warning: str | None = None  # what the operator should know though every unit may be done
    stage_seconds: StageSeconds = field(default_factory=StageSeconds)
    ignored: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of what the source passed over

    @property
    def exit_status(self) -> int:
        """0 if every unit has its feature, else 1."""
        return 1 if self.failed or self.not_started or self.stopped else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as `build --json` prints it."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": [failure_to_json(failure) for failure in self.failed],
            "not_started": self.not_started,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "restarts": self.restarts,
            "split": self.split,
            "stopped": self.stopped,
            "warning": self.warning,
            "stage_seconds": {stage: round(s, 3) for stage, s in asdict(self.stage_seconds).items()},
            "ignored": [{"path": path, "reason": reason} for path, reason in self.ignored],
        }


def failure_to_json(failure: UnitFailure) -> dict[str, Any]:
    """Return a failure as reports and dead letters show it."""
    return {
        "key": failure.key,
        "stage": failure.stage,
        "error": failure.error.value,
        "reason": failure.reason,
        "attempts": failure.attempts,
        "host": failure.host,
    }
