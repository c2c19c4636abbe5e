"""The build's loop: feed the lanes, take what comes back, end well."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cache_store import FeatureStore
from pipeline.errors import EncoderError
from pipeline.failures import UnitFailure
from pipeline.lanes.claims import Claims
from pipeline.lanes.cluster import (
    DECODER_DEPTH,
    DECODER_DEPTH_SMALL,
    ENCODER_DEPTH,
    ENCODER_DEPTH_SMALL,
    LATE_S,
    LaneShape,
    free_places,
    start_decoder,
    start_encoder,
)
from pipeline.lanes.decoder_process import DecodeOutcome
from pipeline.lanes.feeding import Feeding
from pipeline.lanes.lane import Lane
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.outcomes import CLOSE_S, Outcomes
from pipeline.lanes.process_info import ProcessInfo
from pipeline.lanes.recovery import PROCESS_LOST, Recovery, is_restarting, last_line
from pipeline.lanes.report import BuildReport, Progress
from pipeline.lanes.watch import Watch
from pipeline.lanes.worker import State, Work, Worker
from pipeline.unit_done import UnitDone, published
from pipeline.work_plan import Plan

TICK_S = 0.5
ROUND_TRIP_S = 0.01  # of a call between the driver and a busy node
STARTING_S = 3.0  # for a process to come up before it is ended; one that waits for a place takes all of it

logger = logging.getLogger("pipeline.lanes")


class Scheduler:
    """Runs one plan over lanes. Made for one run."""

    def __init__(
        self,
        plan: Plan,
        store: FeatureStore,
        shape: LaneShape,
        *,
        claims: Claims | None,
        limits: TimeLimits,
        watch: Watch,
        on_failure: Callable[[UnitFailure], None],
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], str | None],
    ) -> None:
        self._plan, self._task, self._store = plan, plan.task, store
        self._shape, self._limits, self._claims = shape, limits, claims
        self._on_progress, self._should_stop = on_progress, should_stop
        self._watch = watch
        self._last_told = 0.0
        self._calls: dict[Any, tuple[Lane, Worker]] = {}  # by ObjectRef, pings included
        self._lanes = watch.lanes
        self._feeding = Feeding(plan, claims, self._lanes, lane_bytes=shape.lane_bytes)
        self._outcomes = Outcomes(plan, self._feeding, watch, on_failure=on_failure)
        self._recovery = Recovery(self._outcomes, limits)

    def run(self) -> BuildReport:
        """Build everything that the plan holds; returns the report. Names failures instead of raising them.

        Raises:
            EncoderError: the model cannot be loaded where it is to run.
        """
        report = self._outcomes.report
        try:
            self._start_lanes()
            while self._step(feed=report.stopped is None) and time.monotonic() < self._outcomes.drain_until:
                report.stopped = report.stopped or self._should_stop()
            report.stopped = report.stopped or self._feeding.problem  # what was handed out before has been finished
        finally:
            self._close()
        return report

    # -- starting and ending ---------------------------------------------------------------------------------

    def _start_lanes(self) -> None:
        for number in range(self._shape.lanes):
            actor = start_encoder(self._task, self._shape, self._limits, replaces=self._plan.overwrite)
            lane = Lane(f"lane {number}", Worker(actor, "encode", ENCODER_DEPTH, ENCODER_DEPTH_SMALL))
            self._lanes.append(lane)
            self._ask_ready(lane, lane.encoder)

    def _add_decoders(self, lane: Lane, count: int) -> None:
        added = min(count, self._shape.most_decoders - len(lane.decoders))
        for _ in range(added):
            near_node = lane.encoder.node_id
            recheck = not self._plan.overwrite
            actor = start_decoder(self._task, self._shape, near_node=near_node, recheck=recheck)
            lane.decoders.append(Worker(actor, "decode", DECODER_DEPTH, DECODER_DEPTH_SMALL))
            self._ask_ready(lane, lane.decoders[-1])
        if added > 0:
            self._watch.decoders_added(lane, added)

    def _ask_ready(self, lane: Lane, worker: Worker) -> None:
        worker.ask_ready()
        if worker.ping is not None:
            self._calls[worker.ping] = (lane, worker)

    def _close(self) -> None:
        self._outcomes.close(
            self._watch.now_s(), sum(worker.restarts for lane in self._lanes for worker in lane.workers)
        )
        # A decoder that still works on something takes no other call, and is ended with what it has.
        closing = [
            worker.actor.close.remote()
            for lane in self._lanes
            for worker in lane.workers
            if worker.state is State.READY and not (worker.kind == "decode" and worker.in_flight)
        ]
        if closing:
            # What is lost if this takes too long are use times and counters, never a feature.
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        self._end_processes()
        self._tell(now=True)
        self._watch.end(self._outcomes.report)

    def _end_processes(self) -> None:
        workers = [worker for lane in self._lanes for worker in lane.workers]
        # Ray 2.60 drops a kill that meets a process between its lease and its actor's creation: process, CPUs and GPU
        # would be held as long as the driver lives, and its next build could wait for them for ever.
        starting = [worker.actor.__ray_ready__.remote() for worker in workers if worker.state is State.STARTING]
        if starting:
            ray.wait(starting, num_returns=len(starting), timeout=STARTING_S)
        for worker in workers:
            ray.kill(worker.actor)

    # -- one turn of the loop --------------------------------------------------------------------------------

    def _step(self, *, feed: bool) -> bool:
        """Feed the lanes and take what came back; returns whether anything is left to wait for."""
        for lane in self._lanes:
            for worker in lane.workers:
                if worker.state is State.DRAINING:
                    self._ask_ready(lane, worker)
            if feed:
                self._feed(lane)
        if not self._pending(feed=feed):
            return False
        if self._calls:
            calls = list(self._calls)
            ready, rest = ray.wait(calls, num_returns=1, timeout=TICK_S, fetch_local=False)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
            for call in ready:
                self._take(call)
        else:
            time.sleep(TICK_S / 5)  # every process is down; each is asked again after its pause
        for lane in self._lanes:
            self._recovery.end_overdue(lane, self._calls)
            self._tell_if_late(lane)
        if self._claims is not None:
            self._claims.refresh()
        self._tell()
        return True

    def _pending(self, *, feed: bool) -> bool:
        in_flight = any(worker.in_flight for lane in self._lanes for worker in lane.workers)
        if in_flight or not feed:
            return in_flight
        if any(lane.queue or lane.decoded or any(w.suspects for w in lane.workers) for lane in self._lanes):
            return True
        return not self._feeding.is_empty()

    def _feed(self, lane: Lane) -> None:
        feeding = self._feeding
        encoder = lane.encoder
        while works := encoder.admit(lambda: feeding.next_to_encode(lane), lambda: feeding.orphan(lane, encoder)):
            works = [work for work in works if not self._is_done(lane, work)]
            if works:
                places, in_batch = [work.place for work in works], works[0].unit.batch is not None
                self._start(lane, encoder, works, encoder.actor.encode.remote(works[0].pixels, places, in_batch))
        for decoder in lane.decoders:
            while works := decoder.admit(
                lambda: feeding.next_to_decode(lane),
                lambda: feeding.orphan(lane, decoder),  # noqa: B023 - called at once
            ):
                units = [work.unit for work in works]
                outcomes, pixels = decoder.actor.decode.options(num_returns=2).remote(units)
                for place, work in enumerate(works):
                    work.pixels, work.place = pixels, place
                self._start(lane, decoder, works, outcomes)
        wanted = lane.decoders_wanted()
        if wanted and feeding.has_room(lane):
            self._add_decoders(lane, wanted)

    def _is_done(self, lane: Lane, work: Work) -> bool:
        """Whether an encoder that was lost had published the unit; then it is noted."""
        if not work.maybe_done or self._plan.overwrite:
            return False
        done = published(work.unit, self._task, self._store)
        if done is not None:
            self._outcomes.present(lane, work, done)
        return done is not None

    def _start(self, lane: Lane, worker: Worker, works: list[Work], call: Any) -> None:
        worker.started(call, works)
        self._calls[call] = (lane, worker)

    # -- what came back --------------------------------------------------------------------------------------

    def _take(self, call: Any) -> None:
        taken = self._calls.pop(call, None)
        if taken is None:
            return  # given up meanwhile
        lane, worker = taken
        if call == worker.ping:
            self._take_ready(lane, worker, call)
            return
        works = worker.ended(call)
        try:
            results = ray.get(call)
        except PROCESS_LOST as exc:
            self._recovery.take_lost(lane, worker, works, exc)
            return
        except RayTaskError as exc:
            self._recovery.take_raised(worker, works, exc)
            return
        if worker.kind == "decode":
            self._take_decoded(lane, worker, works, results)
        else:
            self._take_encoded(lane, worker, works, results)

    def _take_ready(self, lane: Lane, worker: Worker, call: Any) -> None:
        try:
            info: ProcessInfo = ray.get(call)
        except PROCESS_LOST as exc:
            if is_restarting(exc):
                worker.not_yet()
            else:
                self._recovery.note_death(lane, worker, exc)
            return
        except RayTaskError as exc:
            if isinstance(exc.cause, EncoderError):
                raise exc.cause from exc
            raise EncoderError(f"{lane.name} cannot load the model: {last_line(exc)}") from exc
        worker.answered(info.node_id, info.host, oom_kills=info.oom_kills)
        self._watch.ready(lane, worker, info.device)
        if worker is lane.encoder:
            lane.device = info.device
            if self._shape.gpus_per_encoder and info.device == "cpu":
                self._outcomes.report.warning = (
                    f"{lane.name} holds a GPU of Ray's, but torch sees none there: it encodes on the CPU"
                )
            if not lane.decoders:
                self._add_decoders(lane, self._shape.decoders_per_lane)

    def _take_decoded(self, lane: Lane, worker: Worker, works: list[Work], outcomes: Sequence[DecodeOutcome]) -> None:
        worker.deaths_without_result = 0
        seconds = 0.0
        for work, outcome in zip(works, outcomes, strict=True):
            if outcome.failure is not None:
                self._outcomes.fail(worker, work, outcome.failure)
            elif outcome.present is not None:
                self._outcomes.present(lane, work, outcome.present)
            else:
                seconds += outcome.decode_s
                self._feeding.note_decoded(outcome.nbytes)
                self._watch.decoded(lane, work, outcome.decode_s)
                work.hold(lane.bytes_in_flight, outcome.nbytes)
                work.enter_next_stage()
                lane.decoded.append(work)
        if seconds:
            self._outcomes.report.stage_seconds.decode += seconds
            self._feeding.note_speed(worker.kind, seconds / len(works))
            worker.note_speed(seconds, ROUND_TRIP_S)

    def _take_encoded(
        self, lane: Lane, worker: Worker, works: list[Work], results: Sequence[UnitDone | UnitFailure | None]
    ) -> None:
        done: list[UnitDone] = []
        for work, result in zip(works, results, strict=True):
            if result is None:
                worker.suspect([work])
            elif isinstance(result, UnitDone):
                worker.deaths_without_result = 0
                done.append(result)
                note = self._outcomes.present if result.is_found else self._outcomes.done
                note(lane, work, result)
            elif result.spoils_process:
                self._recovery.take_spoiled(lane, worker, work, result)
            else:
                worker.deaths_without_result = 0
                self._outcomes.fail(worker, work, result)
        if done:
            encode_s = sum(one.encode_s for one in done)
            self._feeding.note_speed(worker.kind, encode_s / len(done))
            worker.note_speed(encode_s, max(one.write_s for one in done))

    # -- telling ---------------------------------------------------------------------------------------------

    def _tell_if_late(self, lane: Lane) -> None:
        for worker in lane.workers:
            if worker.is_late(LATE_S) and not worker.is_told_late:
                worker.is_told_late = True
                gpus = self._shape.gpus_per_encoder if worker is lane.encoder else 0
                logger.warning(
                    "%s: its %sr process has not come up for %g s and is waited for: it loads its model, or waits "
                    "for a place with %g CPU and %d GPU (free in the cluster: %s)",
                    lane.name,
                    worker.kind,
                    LATE_S,
                    self._shape.cpus_per_process,
                    gpus,
                    free_places(),
                )

    def _tell(self, *, now: bool = False) -> None:
        seconds = self._watch.now_s()
        if not now and seconds - self._last_told < TICK_S / 2:
            return
        self._last_told = seconds
        report, todo = self._outcomes.report, self._outcomes.todo
        seconds_left = self._watch.tick(report, todo=todo)
        self._on_progress(
            Progress(
                todo=todo,
                done=report.done,
                skipped=report.skipped,
                failed=len(report.failed),
                bytes_written=report.bytes,
                seconds=seconds,
                seconds_left=seconds_left,
                lanes=tuple(lane.progress(seconds) for lane in self._lanes),
                last_failure=report.failed[-1] if report.failed else None,
            )
        )
