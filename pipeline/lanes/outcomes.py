"""How units end: built, found in the store, or failed. Every unit that was pulled passes through here exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from cache_store import recipe_fingerprint
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes.feeding import Feeding
from pipeline.lanes.lane import Lane
from pipeline.lanes.report import BuildReport
from pipeline.lanes.watch import Watch
from pipeline.lanes.worker import Work, Worker
from pipeline.unit_done import UnitDone
from pipeline.work_plan import Plan

CLOSE_S = 10.0  # for what is in flight when a build gives up, and for its processes to close


def source_failures(plan: Plan) -> list[UnitFailure]:
    """Return the samples that the source itself calls impossible."""
    return [UnitFailure(name, "source", reason, ErrorClass.BAD_MEDIA, attempts=0) for name, reason in plan.problems]


class Outcomes:
    """Keeps the report of a running build."""

    def __init__(
        self, plan: Plan, feeding: Feeding, watch: Watch, *, on_failure: Callable[[UnitFailure], None]
    ) -> None:
        self.report, self._watch = BuildReport(skipped=plan.skipped), watch
        self.drain_until = float("inf")  # on the monotonic clock
        self._plan, self._feeding, self._on_failure = plan, feeding, on_failure
        for failure in source_failures(plan):
            self._note_failure(failure, None)

    @property
    def todo(self) -> int:
        """Units that this build is to build: not those that others built meanwhile."""
        return self._plan.todo - (self.report.skipped - self._plan.skipped)

    def done(self, lane: Lane, work: Work, result: UnitDone, *, by_lost_process: bool = False) -> None:
        """Note that the unit has its feature, built here."""
        self._watch.built(lane, work, result, by_lost_process=by_lost_process)
        self._end(work)
        lane.done += 1
        report = self.report
        report.done += 1
        report.bytes += result.bytes
        report.stage_seconds.encode += result.encode_s
        report.stage_seconds.write += result.write_s
        if result.split_into is not None:
            report.split += 1
            report.warning = (
                f"{report.split} units were encoded {result.split_into} frames or steps at once or in other parts, "
                "because the device had no memory for more; their last bits may differ, and their provenance says so"
            )

    def present(self, lane: Lane, work: Work, result: UnitDone) -> None:
        """Note that the store has the feature: from an encoder of this build that was lost, or from another build.

        It may have been encoded here for nothing: the seconds were spent.
        """
        if work.maybe_done:
            self.done(lane, work, result, by_lost_process=True)
        else:
            self._watch.present(work)
            self._end(work)
            self.report.skipped += 1
            self.report.stage_seconds.encode += result.encode_s

    def fail(self, worker: Worker, work: Work, failure: UnitFailure) -> None:
        """Note that the unit has failed for good; the build ends if every other unit would fail too."""
        self._end(work)
        if failure.stops_build and self.report.stopped is not None:
            return  # in flight when the build stopped for the same reason: not started, as all that follow
        recipe = recipe_fingerprint(self._plan.task.recipe(work.unit.sample))
        self._note_failure(replace(failure, attempts=work.attempts, host=worker.host, recipe=recipe), worker)
        if failure.stops_build:
            self.give_up(failure.reason)

    def give_up(self, why: str) -> None:
        """Let the build end before its plan does. What is in flight may still end well, if it does so soon."""
        self.report.stopped = self.report.stopped or why
        self.drain_until = min(self.drain_until, time.monotonic() + CLOSE_S)

    def lost(self, lane: Lane, worker: Worker, why: str) -> None:
        """Note that a process died, before its state says so."""
        self._watch.lost(lane, worker, why)

    def close(self, seconds: float, restarts: int) -> None:
        """Add up what is left."""
        report = self.report
        report.seconds, report.restarts = seconds, restarts
        report.not_started = self.todo - report.done - (len(report.failed) - len(self._plan.problems))

    def _note_failure(self, failure: UnitFailure, worker: Worker | None) -> None:
        self.report.failed.append(failure)
        self._watch.failed(failure, worker)
        self._on_failure(failure)

    def _end(self, work: Work) -> None:
        work.release()
        self._feeding.note_end(work)
