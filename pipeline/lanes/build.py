"""Run a plan on Ray: connect, shape the lanes, schedule, report."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from cache_store import FeatureStore
from cache_store.remote.store import RemoteStore
from pipeline.failures import UnitFailure
from pipeline.lanes.claim_boards import FileBoard, ObjectBoard
from pipeline.lanes.claims import Claims
from pipeline.lanes.cluster import connection, shape_lanes
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.metrics import Metrics
from pipeline.lanes.outcomes import source_failures
from pipeline.lanes.report import BuildReport, Progress, failure_to_json
from pipeline.lanes.scheduler import Scheduler
from pipeline.lanes.watch import Watch, end_fields
from pipeline.run_events import RunEvents
from pipeline.work_plan import Plan


def run_build(
    plan: Plan,
    store: FeatureStore,
    *,
    address: str | None = None,
    lanes: int | None = None,
    decoders_per_lane: int | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    limits: TimeLimits | None = None,
    on_failure: Callable[[UnitFailure], None] = lambda failure: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], str | None] = lambda: None,
    begin: Callable[[], RunEvents] = RunEvents,
    dataset: str = "",
) -> BuildReport:
    """Build what the plan holds; returns the report, in which every failed unit has its name and reason.

    Ray is joined at `address` or $RAY_ADDRESS, else started on this machine for the length of the call; a plan with
    nothing to do starts nothing. `on_failure` hears of each failed unit at once. `should_stop` is asked about twice a
    second; a reason ends the build after the units in flight. `begin` is called once nothing is left to be refused, and
    what it returns gets what happens. `dataset` is what the build's metrics are labelled with.

    Raises:
        BuildRefused: no cluster answers, or it has not what `device` asks for.
        EncoderError: the model cannot be loaded where it is to run.
    """
    events = RunEvents()
    try:
        if plan.todo == 0:
            events = begin()
            report = _nothing_to_do(plan, events, on_failure)
        else:
            with connection(address):
                shape = shape_lanes(lanes=lanes, decoders_per_lane=decoders_per_lane, device=device)
                events = begin()
                watch = Watch(events, Metrics(dataset=dataset, run=plan.task.run_id or ""))
                events.start(todo=plan.todo, skipped=plan.skipped, **asdict(shape))
                # With --overwrite nobody can tell by the store what another build has done, so nothing is shared.
                claims = None if plan.overwrite else _claims(store, plan.task.run_id or uuid.uuid4().hex)
                with contextlib.closing(claims) if claims is not None else contextlib.nullcontext():
                    report = Scheduler(
                        plan,
                        store,
                        shape,
                        claims=claims,
                        limits=limits or TimeLimits(),
                        watch=watch,
                        on_failure=on_failure,
                        on_progress=on_progress,
                        should_stop=should_stop,
                    ).run()
    except BaseException as exc:
        events.note("error", {"reason": f"{type(exc).__name__}: {exc}".removesuffix(": ")})
        events.flush()
        raise
    report.ignored = [(str(file.path), file.reason) for file in plan.source.ignored()]
    return report


def _claims(store: FeatureStore, build: str) -> Claims:
    if isinstance(store, RemoteStore):
        return Claims(ObjectBoard(store.objects), build=build)
    return Claims(FileBoard(store.root, writer=build), build=build)


def _nothing_to_do(plan: Plan, events: RunEvents, on_failure: Callable[[UnitFailure], None]) -> BuildReport:
    report = BuildReport(skipped=plan.skipped, failed=source_failures(plan))
    events.start(todo=0, skipped=plan.skipped, lanes=0)
    for failure in report.failed:
        events.note("failed", {**failure_to_json(failure), "lane": ""})
        on_failure(failure)
    events.note("end", end_fields(report))
    events.flush()
    return report
