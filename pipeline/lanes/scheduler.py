"""The build's loop: pull units into lanes, keep bounded bytes in flight, retry suspects alone, name every failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from cache_store import FeatureStore
from pipeline.encode_unit import Stage, UnitDone, UnitFailure
from pipeline.errors import EncoderError
from pipeline.lanes.cluster import DECODER_DEPTH, ENCODER_DEPTH, LaneShape, start_decoder, start_encoder
from pipeline.lanes.lane import Lane
from pipeline.lanes.processes import DecodeOutcome, ProcessInfo
from pipeline.lanes.report import BuildReport, Progress
from pipeline.lanes.worker import DEATHS_WITHOUT_RESULT, PROCESS_LOST, State, Work, Worker
from pipeline.work_plan import Plan, Unit, shards

TICK_S = 0.5
CLOSE_S = 10.0
MOST_WAITING = 2 * ENCODER_DEPTH  # decoded units of one lane that wait for its encoder
FIRST_GUESS_BYTES = 16 * 2**20  # of a decoded unit, before the first one is known


@dataclass(frozen=True)
class TimeLimits:
    """Wall-clock limits of one unit in one stage, in seconds. A process that is over it is killed."""

    decode_s: float = 600.0
    encode_s: float = 1800.0

    def of(self, kind: str) -> float:
        """Return the limit of the stage `kind`."""
        return self.decode_s if kind == "decode" else self.encode_s


class BuildStopped(Exception):
    """The build ends before its plan does; the message says why."""


class Scheduler:
    """Runs one plan over lanes. Made for one run."""

    def __init__(
        self,
        plan: Plan,
        store: FeatureStore,
        shape: LaneShape,
        *,
        limits: TimeLimits,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], str | None],
    ) -> None:
        self._plan, self._task, self._store = plan, plan.task, store
        self._shape, self._limits = shape, limits
        self._shards: Iterator[list[Unit]] = shards(plan.units())
        self._on_progress, self._should_stop = on_progress, should_stop
        self._started = time.monotonic()
        self._last_told = 0.0
        self._largest_bytes = 0  # of a decoded unit so far
        self._calls: dict[Any, tuple[Lane, Worker]] = {}  # by ObjectRef, pings included
        self._report = BuildReport(skipped=plan.skipped)
        self._report.failed += [UnitFailure(name, "source", reason) for name, reason in plan.problems]
        self._lanes: list[Lane] = []

    def run(self) -> BuildReport:
        """Build everything that the plan holds; returns the report. Names failures instead of raising them.

        Raises:
            EncoderError: the model cannot be loaded where it is to run.
        """
        stopping = False
        try:
            self._start_lanes()
            while self._step(feed=not stopping):
                reason = None if stopping else self._should_stop()
                if reason:
                    stopping, self._report.stopped = True, reason
        except BuildStopped as exc:
            self._report.stopped = str(exc)
        finally:
            self._close()
        return self._report

    # -- starting and ending ---------------------------------------------------------------------------------

    def _start_lanes(self) -> None:
        for number in range(self._shape.lanes):
            actor = start_encoder(self._task, self._shape)
            lane = Lane(f"lane {number}", Worker(actor, "encode", ENCODER_DEPTH))
            self._lanes.append(lane)
            self._ask_ready(lane, lane.encoder)

    def _ask_ready(self, lane: Lane, worker: Worker) -> None:
        worker.ask_ready()
        if worker.ping is not None:
            self._calls[worker.ping] = (lane, worker)

    def _close(self) -> None:
        report = self._report
        report.seconds = time.monotonic() - self._started
        report.restarts = sum(worker.restarts for lane in self._lanes for worker in lane.workers)
        report.not_started = self._plan.todo - report.done - len(report.failed) + len(self._plan.problems)
        closing = [lane.encoder.actor.close.remote() for lane in self._lanes if lane.encoder.state is State.READY]
        if closing:
            # What is lost if this takes too long are use times and counters, never a feature.
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for lane in self._lanes:
            for worker in lane.workers:
                ray.kill(worker.actor)
        self._tell(now=True)

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
        self._kill_overdue()
        self._tell()
        return True

    def _pending(self, *, feed: bool) -> bool:
        in_flight = any(worker.in_flight for lane in self._lanes for worker in lane.workers)
        if not feed:
            return in_flight
        waiting = any(
            lane.queue or lane.decoded or any(worker.suspects for worker in lane.workers) for lane in self._lanes
        )
        return in_flight or waiting or self._refill(self._lanes[0])

    def _feed(self, lane: Lane) -> None:
        while work := lane.encoder.admit(lambda: self._next_to_encode(lane)):
            self._start(lane, lane.encoder, work, lane.encoder.actor.encode.remote(work.pixels))
        for decoder in lane.decoders:
            while work := decoder.admit(lambda: self._next_to_decode(lane)):
                outcome, work.pixels = decoder.actor.decode.options(num_returns=2).remote(work.unit)
                self._start(lane, decoder, work, outcome)

    def _start(self, lane: Lane, worker: Worker, work: Work, call: Any) -> None:
        worker.started(call, work)
        self._calls[call] = (lane, worker)

    def _next_to_encode(self, lane: Lane) -> Work | None:
        if lane.decoded:
            return lane.decoded.popleft()
        if lane.encoder.in_flight:
            return None
        # This encoder idles: take what waits for another one. The pixels move to wherever they are asked for.
        richest = max(self._lanes, key=lambda other: len(other.decoded))
        if not richest.decoded:
            return None
        work = richest.decoded.pop()
        richest.bytes_in_flight -= work.nbytes
        lane.bytes_in_flight += work.nbytes
        return work

    def _next_to_decode(self, lane: Lane) -> Work | None:
        # More would only wait here, where no other lane's decoders can share the work.
        if len(lane.decoded) >= MOST_WAITING:
            return None
        guess = self._largest_bytes or FIRST_GUESS_BYTES
        # One unit larger than the limit still passes, alone: a limit must slow a build down, not stop it.
        if lane.bytes_in_flight and lane.bytes_in_flight + guess > self._shape.lane_bytes:
            return None
        if not lane.queue and not self._refill(lane):
            return None
        work = lane.queue.popleft()
        work.nbytes = guess
        lane.bytes_in_flight += guess
        return work

    def _refill(self, lane: Lane) -> bool:
        """Give the lane its next shard, or, when the plan is at its end, the last unit of the longest queue."""
        shard = next(self._shards, None)
        if shard is not None:
            lane.queue.extend(Work(unit) for unit in shard)
            return True
        richest = max(self._lanes, key=lambda other: len(other.queue))
        if richest.queue and richest is not lane:
            lane.queue.append(richest.queue.pop())
        return bool(lane.queue)

    # -- what came back --------------------------------------------------------------------------------------

    def _take(self, call: Any) -> None:
        lane, worker = self._calls.pop(call)
        if call == worker.ping:
            self._take_ready(lane, worker, call)
            return
        work = worker.ended(call)
        try:
            result = ray.get(call)
        except PROCESS_LOST as exc:
            self._take_lost(lane, worker, work, exc)
            return
        except RayTaskError as exc:
            result = UnitFailure(work.unit.name, worker.kind, _last_line(exc))
            if worker.kind == "decode":
                result = DecodeOutcome(result, 0, 0.0)
        worker.deaths_without_result = 0
        if isinstance(result, DecodeOutcome):
            self._take_decoded(lane, work, result)
        else:
            self._take_encoded(lane, work, result)

    def _take_ready(self, lane: Lane, worker: Worker, call: Any) -> None:
        try:
            info: ProcessInfo = ray.get(call)
        except PROCESS_LOST as exc:
            self._note_death(lane, worker, exc)
            return
        except RayTaskError as exc:
            if isinstance(exc.cause, EncoderError):
                raise exc.cause from exc
            raise EncoderError(f"{lane.name} cannot load the model: {_last_line(exc)}") from exc
        worker.answered()
        if worker is lane.encoder:
            self._note_device(lane, info.device)
        if worker is lane.encoder and not lane.decoders:
            for _ in range(self._shape.decoders_per_lane):
                actor = start_decoder(self._task, self._shape, near_node=info.node_id)
                lane.decoders.append(Worker(actor, "decode", DECODER_DEPTH))
                self._ask_ready(lane, lane.decoders[-1])

    def _note_device(self, lane: Lane, device: str) -> None:
        lane.device = device
        if self._shape.gpus_per_encoder and device == "cpu":
            self._report.warning = f"{lane.name} holds a GPU of Ray's, but torch sees none there: it encodes on the CPU"

    def _take_decoded(self, lane: Lane, work: Work, outcome: DecodeOutcome) -> None:
        lane.bytes_in_flight -= work.nbytes
        if outcome.failure is not None:
            self._report.failed.append(outcome.failure)
            return
        self._report.stage_seconds.decode += outcome.decode_s
        self._largest_bytes = max(self._largest_bytes, outcome.nbytes)
        work.nbytes = outcome.nbytes
        lane.bytes_in_flight += outcome.nbytes
        # The blame of one stage is not carried to the next.
        work.alone, work.lonely_deaths = False, 0
        lane.decoded.append(work)

    def _take_encoded(self, lane: Lane, work: Work, result: UnitDone | UnitFailure) -> None:
        lane.bytes_in_flight -= work.nbytes
        work.pixels = None
        if isinstance(result, UnitFailure):
            self._report.failed.append(result)
            if result.stops_build:
                raise BuildStopped(result.reason)
            return
        self._note_done(lane, result)

    def _note_done(self, lane: Lane, result: UnitDone) -> None:
        lane.done += 1
        self._report.done += 1
        self._report.bytes += result.bytes
        self._report.stage_seconds.encode += result.encode_s
        self._report.stage_seconds.write += result.write_s

    # -- processes that die or hang --------------------------------------------------------------------------

    def _take_lost(self, lane: Lane, worker: Worker, work: Work, exc: Exception) -> None:
        if isinstance(exc, ObjectLostError):
            # The node that held the pixels is gone, not the encoder: decode again.
            lane.bytes_in_flight -= work.nbytes
            lane.queue.appendleft(Work(work.unit, lonely_deaths=work.lonely_deaths))
            return
        self._note_death(lane, worker, exc)
        if worker.kind == "encode" and (done := self._already_published(work)):
            # It died between the rename and its answer.
            lane.bytes_in_flight -= work.nbytes
            self._note_done(lane, done)
        elif worker.blame(work):
            lane.bytes_in_flight -= work.nbytes
            reason = f"the process died each time it worked on this alone ({_last_line(exc)})"
            self._fail(work.unit, worker.kind, reason)

    def _already_published(self, work: Work) -> UnitDone | None:
        sample = work.unit.sample
        recipe = self._task.recipe(sample)
        if self._plan.overwrite or self._store.state_of(work.unit.key, recipe=recipe) != "present":
            return None
        return UnitDone(work.unit.name, self._store.path_of(work.unit.key, recipe=recipe).stat().st_size, 0.0, 0.0)

    def _note_death(self, lane: Lane, worker: Worker, exc: Exception) -> None:
        worker.died()
        if worker.deaths_without_result >= DEATHS_WITHOUT_RESULT:
            raise BuildStopped(
                f"{lane.name}: the {worker.kind}r process died {worker.deaths_without_result} times in a row "
                f"without finishing a unit; last: {_last_line(exc)}"
            )

    def _kill_overdue(self) -> None:
        for lane in self._lanes:
            for worker in lane.workers:
                limit_s = self._limits.of(worker.kind)
                if worker.overdue(limit_s):
                    self._end_overdue(lane, worker, limit_s)

    def _end_overdue(self, lane: Lane, worker: Worker, limit_s: float) -> None:
        call, work = next(iter(worker.in_flight.items()))
        worker.kill()
        if not work.alone and len(worker.in_flight) > 1 and worker.kind == "encode":
            return  # several threads: not known which of them hangs, so each is tried again alone
        # A decoder works on one unit at a time, the oldest first: that is the one that hangs.
        worker.ended(call)
        del self._calls[call]
        lane.bytes_in_flight -= work.nbytes
        self._fail(work.unit, worker.kind, f"no result after {limit_s:g} s")
        worker.died()

    def _fail(self, unit: Unit, stage: Stage, reason: str) -> None:
        self._report.failed.append(UnitFailure(unit.name, stage, reason))

    # -- telling ---------------------------------------------------------------------------------------------

    def _tell(self, *, now: bool = False) -> None:
        seconds = time.monotonic() - self._started
        if not now and seconds - self._last_told < TICK_S / 2:
            return
        self._last_told = seconds
        report = self._report
        self._on_progress(
            Progress(
                todo=self._plan.todo,
                done=report.done,
                skipped=report.skipped,
                failed=len(report.failed),
                bytes_written=report.bytes,
                seconds=seconds,
                lanes=tuple(lane.progress() for lane in self._lanes),
                last_failure=report.failed[-1] if report.failed else None,
            )
        )


def _last_line(exc: Exception) -> str:
    """Return the class and the last line of an error that crossed Ray, whose text begins with a remote traceback."""
    cause = getattr(exc, "cause", None) or exc
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
