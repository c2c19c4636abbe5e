"""How fast a build runs: its steady pace while every lane works, and what start, stages and processes take."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray

from benchmarks.build.scale import Scale
from cache_store import FeatureStore
from pipeline.encoders.base import EncoderSpec
from pipeline.lanes import BuildReport, Progress, run_build
from pipeline.sources import Source
from pipeline.work_plan import BuildTask, plan_build

MEASURED = "measured"
DRIVER, DECODERS, ENCODERS, RAY = KINDS = ("driver", "decoders", "encoders", "Ray itself")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[None]:
    """Ray on this machine, up for everything that is measured inside; a lane's torch threads follow from `cpus`.

    A Ray that is up is used as it is.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    ray.init(address="local", num_cpus=cpus, **options)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Moment:
    seconds: float  # since the start of the build
    done: int
    cpu_s: Mapping[str, float]


@dataclass
class _Watch:
    """Follows a build, and asks for its end when it has worked steadily for long enough."""

    lanes: int
    decoders: int  # of all lanes
    scale: Scale
    first_unit: _Moment | None = None
    first: _Moment | None = None  # when the window begins
    last: _Moment | None = None  # when it ends
    _all_at_work_s: float | None = None
    _latest_done: int = 0

    def on_progress(self, progress: Progress) -> None:
        # Only right after a unit has ended, so that no half of a unit is counted at either end.
        if self.last is not None or progress.done == self._latest_done:
            return
        self._latest_done = progress.done
        now = _Moment(progress.seconds, progress.done, {})
        self.first_unit = self.first_unit or now
        if self._all_at_work_s is None:
            if self._are_all_at_work(progress):
                self._all_at_work_s = progress.seconds
        elif self.first is None:
            if progress.seconds >= self._all_at_work_s + self.scale.warm_s:
                self.first = replace(now, cpu_s=cpu_seconds())
        elif progress.seconds >= self.first.seconds + self.scale.window_s:
            self.last = replace(now, cpu_s=cpu_seconds())

    def _are_all_at_work(self, progress: Progress) -> bool:
        """Whether each encoder has finished a unit, and no decoder is still starting, which takes a core."""
        if sum(lane.done > 0 for lane in progress.lanes) < self.lanes:
            return False
        return sum(process.kind == DECODERS for process in processes()) >= self.decoders

    def should_stop(self) -> str | None:
        return MEASURED if self.last is not None else None


@dataclass(frozen=True)
class Pace:
    """What was measured of one build."""

    units_per_s: float  # steady: while every lane was at work
    whole_per_s: float  # from the first finished unit to the last one, the end of the build included
    start_s: float  # from the start of the build to its first finished unit
    cpu_us: dict[str, float]  # CPU time of each unit of the steady part, by kind of process
    report: BuildReport


def build_pace(
    source: Source,
    spec: EncoderSpec,
    root: Path,
    scale: Scale,
    *,
    lanes: int = 1,
    decoders: int | None = None,
    nframe: int = 128,
    overwrite: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "cpu",
) -> Pace:
    """Build into a new store at `root` until the window has passed; the source must be longer than that.

    Raises:
        RuntimeError: a unit failed, or the plan was done too early.
    """
    watch = _Watch(lanes, lanes * (decoders or 1), scale)
    with FeatureStore(root) as store:
        task = BuildTask(spec, str(store.root), None, nframe=nframe)
        report = run_build(
            plan_build(source, task, store, overwrite=overwrite),
            store,
            lanes=lanes,
            decoders_per_lane=decoders,
            device=device,
            on_progress=watch.on_progress,
            should_stop=watch.should_stop,
        )
    if report.failed:
        raise RuntimeError(f"{report.failed[0].key} failed: {report.failed[0].reason}")
    if watch.first is None or watch.last is None or watch.first_unit is None:
        raise RuntimeError(f"the plan was done before {scale.window_s:g} s of steady work: {report.stopped}")
    units = watch.last.done - watch.first.done
    before = watch.first.cpu_s
    return Pace(
        units / (watch.last.seconds - watch.first.seconds),
        (report.done - watch.first_unit.done) / (report.seconds - watch.first_unit.seconds),
        watch.first_unit.seconds,
        {name: (after - before.get(name, 0.0)) / units * 1e6 for name, after in watch.last.cpu_s.items()},
        report,
    )


@dataclass(frozen=True)
class Process:
    """This process, or one that descends from it."""

    kind: str
    cpu_s: float


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far of this process and all that descend from it, by kind."""
    found: dict[str, float] = defaultdict(float)
    for process in processes():
        found[process.kind] += process.cpu_s
    return dict(found)


def processes() -> list[Process]:
    """This process and all that descend from it."""
    parents, cpu_s = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name before the last bracket may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        pid = int(folder.name)
        parents[pid], cpu_s[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return [Process(_kind(pid), cpu_s[pid]) for pid in parents if _is_below(pid, parents)]


def _is_below(pid: int, parents: Mapping[int, int]) -> bool:
    while pid and pid != os.getpid():
        pid = parents.get(pid, 0)
    return bool(pid)


def _kind(pid: int) -> str:
    if pid == os.getpid():
        return DRIVER
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")
    except OSError:
        return RAY
    # While it starts, an actor's title is not yet its class's name or one of its methods' names.
    return {
        "ray::EncoderProcess": ENCODERS,
        "ray::EncoderProcess.encode": ENCODERS,
        "ray::DecoderProcess": DECODERS,
        "ray::DecoderProcess.decode": DECODERS,
    }.get(title, RAY)
