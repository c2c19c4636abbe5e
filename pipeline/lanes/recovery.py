"""What happens to units whose process died, hangs or is spoiled: retried alone, until the culprit is known by name."""

from __future__ import annotations

from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes.cluster import is_gone
from pipeline.lanes.lane import Lane
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.outcomes import Outcomes
from pipeline.lanes.worker import State, Work, Worker

# The last four are no subclasses of RayActorError, though each means that the process or its node went away.
PROCESS_LOST = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, ObjectLostError)

# More than any single unit can cause: then the process itself is what fails.
DEATHS_WITHOUT_RESULT = 10


class Recovery:
    """Judges lost calls."""

    def __init__(self, outcomes: Outcomes, limits: TimeLimits) -> None:
        self._outcomes, self._limits = outcomes, limits

    def take_lost(self, lane: Lane, worker: Worker, works: list[Work], exc: Exception) -> None:
        """Take a call that was lost with its process, or for want of its pixels; its units are tried again.

        The build ends if the process dies whatever it works on.
        """
        for work in works:
            work.maybe_done = work.maybe_done or worker.kind == "encode"
        if isinstance(exc, ObjectLostError):
            # The node that held the pixels is gone, not the encoder: decode again.
            for work in works:
                work.release()
                work.enter_next_stage()
            lane.queue.extendleft(reversed(works))
            return
        is_preempted = is_restarting(exc) or is_gone(worker.node_id)
        self.note_death(lane, worker, exc, is_preempted=is_preempted)
        for work in works:
            if worker.blame(work, is_preempted=is_preempted):
                self._outcomes.fail(worker, work, _death(worker, work, exc))

    def take_raised(self, worker: Worker, works: list[Work], exc: Exception) -> None:
        """Take a call that raised, which no unit's own error does: each of several units is tried again alone."""
        if len(works) > 1:
            worker.suspect(works)
            return
        self._outcomes.fail(worker, works[0], UnitFailure(works[0].unit.name, worker.kind, last_line(exc)))

    def take_spoiled(self, lane: Lane, worker: Worker, work: Work, failure: UnitFailure) -> None:
        """Take a failure after which the process cannot be trusted: it is started anew.

        A hanging unit is known by name. An error of the device may be an earlier unit's, so that all in flight are
        suspects. The build ends if the process is spoiled whatever it works on, or the disk hangs.
        """
        if worker.state is State.READY:
            worker.kill()
            self.note_death(lane, worker, failure.reason)
        is_known = failure.error is ErrorClass.HANG and work.unit.batch is None
        if is_known or worker.blame(work):
            self._outcomes.fail(worker, work, failure)

    def note_death(self, lane: Lane, worker: Worker, why: Exception | str, *, is_preempted: bool = False) -> None:
        """Note that a process is lost; the build ends if it was lost too often without finishing a unit."""
        words = why if isinstance(why, str) else last_line(why)
        self._outcomes.lost(lane, worker, words)
        worker.died(is_preempted=is_preempted)
        if worker.deaths_without_result >= DEATHS_WITHOUT_RESULT:
            self._outcomes.give_up(
                f"{lane.name}: the {worker.kind}r process died {worker.deaths_without_result} times in a row "
                f"without finishing a unit; last: {words}"
            )

    def end_overdue(self, lane: Lane, calls: dict[Any, tuple[Lane, Worker]]) -> None:
        """End the lane's processes that are over their limit, and name the units that hang."""
        for worker in lane.workers:
            limit_s = self._limits.of(worker.kind)
            if not worker.overdue(limit_s):
                continue
            call, works = next(iter(worker.in_flight.items()))
            worker.kill()
            several = len(works) > 1 or works[0].unit.batch is not None
            if several or (len(worker.in_flight) > 1 and worker.kind == "encode"):
                continue  # not known which of them hangs, so each comes back as lost and is tried again alone
            # A decoder works on one call at a time, the oldest first: that is the one that hangs.
            [work] = worker.ended(call)
            del calls[call]
            reason = f"no result after {limit_s:g} s"
            self._outcomes.lost(lane, worker, reason)
            worker.died()
            self._outcomes.fail(worker, work, UnitFailure(work.unit.name, worker.kind, reason, ErrorClass.HANG))


def _death(worker: Worker, work: Work, exc: Exception) -> UnitFailure:
    reason = f"the process died each time it worked on this alone ({last_line(exc)})"
    if work.met_oom_killer:
        reason = f"{reason}, and the kernel's out-of-memory killer was at work on its host"
    is_memory = work.met_oom_killer or isinstance(exc, OutOfMemoryError) or "running low on memory" in str(exc)
    error = ErrorClass.OUT_OF_MEMORY if is_memory else ErrorClass.CRASH
    return UnitFailure(work.unit.name, worker.kind, reason, error)


def is_restarting(exc: Exception) -> bool:
    """Whether a call never reached its process, because Ray is still bringing that back."""
    return isinstance(exc, ActorUnavailableError) and "The actor is restarting" in str(exc)


def last_line(exc: Exception) -> str:
    """Return the class and the last line of an error that crossed Ray, whose text begins with a remote traceback."""
    cause = getattr(exc, "cause", None) or exc
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
