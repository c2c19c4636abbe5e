"""What each process works on next: what no other build has, long videos first, no lane idle beside a queue."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.lanes.claims import ASK_AGAIN_S, Claims
from pipeline.lanes.cluster import ENCODER_DEPTH
from pipeline.lanes.lane import Lane
from pipeline.lanes.worker import State, Work, Worker
from pipeline.sources import VideoSample
from pipeline.work_plan import Plan, Shard, Unit

MOST_WAITING = 2 * ENCODER_DEPTH  # decoded units of one lane that wait for its encoder
MOST_WAITING_SMALL = 64  # the same while they are few bytes
SMALL_BYTES = 2**18
# Of one call: more units than one only where the call itself would take as long as they do,
CALL_S = 0.01
CALL_UNITS = 16
CALL_BYTES = 2 * 2**20
FILE_BYTES = 64 * 2**20  # or where they are clips of one file, which is opened once for all of them.
FIRST_GUESS_BYTES = 16 * 2**20  # of a decoded unit, before the first one is known


class Feeding:
    """Hands out the units of one plan to lanes."""

    def __init__(self, plan: Plan, claims: Claims | None, lanes: Sequence[Lane], *, lane_bytes: int) -> None:
        """Without `claims` every shard is taken as it comes: what others do to the store makes no difference."""
        self._shards = plan.shards()
        self._claims, self._lanes, self._lane_bytes = claims, lanes, lane_bytes
        self._held_by_others: deque[Shard] = deque()
        self._ask_after = 0.0  # on the monotonic clock
        self._unfinished: Counter[str] = Counter()  # units by shard
        self._is_exhausted = False
        self.problem: str | None = None  # why the source gave no more
        self._largest_bytes: int | None = None  # of a decoded unit so far
        self._unit_s = {"decode": CALL_S, "encode": CALL_S}  # of the last call's units, in each stage

    def note_decoded(self, nbytes: int) -> None:
        """Note the size of a decoded unit; the largest so far is what is reserved for the next one."""
        self._largest_bytes = max(self._largest_bytes or 0, nbytes)

    def note_speed(self, kind: str, unit_s: float) -> None:
        """Note how long a process of `kind` worked on each unit of its last call."""
        self._unit_s[kind] = unit_s

    def note_end(self, work: Work) -> None:
        """Note that a unit has its feature, or has failed. A shard with no other unit left is given back."""
        self._unfinished[work.shard] -= 1
        if self._unfinished[work.shard] <= 0:
            del self._unfinished[work.shard]
            if self._claims is not None:
                self._claims.release(work.shard)

    def is_empty(self) -> bool:
        """Whether nothing is left that any lane could ever pull, what other builds hold included."""
        return self._is_exhausted and not self._held_by_others

    def next_to_encode(self, lane: Lane) -> list[Work]:
        """Return decoded units of the lane, or, if its encoder idles, what waits for another encoder.

        They come from one call to a decoder, so that one reference to their pixels is enough.
        """
        if lane.decoded:
            return self._of_one_call(lane.decoded)
        if lane.encoder.in_flight:
            return []
        richest = max(self._lanes, key=lambda other: len(other.decoded))
        works = self._of_one_call(richest.decoded)
        for work in works:
            # The pixels move to wherever they are asked for.
            work.hold(lane.bytes_in_flight, work.nbytes)
        return works

    def _of_one_call(self, decoded: deque[Work]) -> list[Work]:
        """Take the first unit out, and quick ones behind it whose pixels came with it."""
        works: list[Work] = []
        while decoded and (not works or (decoded[0].pixels == works[0].pixels and self._may_share(decoded[0], works))):
            works.append(decoded.popleft())
        return works

    def _may_share(self, work: Work, works: list[Work]) -> bool:
        """Whether a unit goes to the encoder in one call with others: of their batch, or all take little time."""
        if _batch_of(work, works) is not None:
            return True
        return work.unit.batch is None and self._is_quick(len(works) + 1)

    def next_to_decode(self, lane: Lane) -> list[Work]:
        """Return the units of the lane's next call; none while enough is decoded already, or no byte is left."""
        guess = self._guess()
        # More would only wait here, where no other lane's decoders can share the work.
        if len(lane.decoded) >= (MOST_WAITING_SMALL if guess <= SMALL_BYTES else MOST_WAITING):
            return []
        works: list[Work] = []
        while lane.queue or (not works and self._refill(lane)):
            # One unit larger than the limit still passes, alone: a limit must slow a build down, not stop it.
            held = lane.bytes_in_flight.held
            # A batch that is cut would be encoded twice.
            cuts_batch = _batch_of(lane.queue[0], works) is not None
            if not cuts_batch and held and held + guess > self._lane_bytes:
                break
            if works and not self._may_join(lane.queue[0], works, guess):
                break
            works.append(lane.queue.popleft())
            works[-1].hold(lane.bytes_in_flight, guess)
        return works

    def _may_join(self, work: Work, works: list[Work], guess: int) -> bool:
        """Whether a unit goes in one call with others: all take little time, or are clips of one file."""
        if _batch_of(work, works) is not None:
            return True
        if work.unit.batch is not None or works[0].unit.batch is not None:
            return False
        nbytes = (len(works) + 1) * guess
        if work.unit.file == works[0].unit.file:
            return nbytes <= FILE_BYTES
        return self._is_quick(len(works) + 1) and nbytes <= CALL_BYTES

    def _is_quick(self, units: int) -> bool:
        """Whether so many units take less time, in each stage, than would be worth a call for each."""
        return units <= CALL_UNITS and units * max(self._unit_s.values()) <= CALL_S

    def _guess(self) -> int:
        """Bytes to reserve for a unit that is not decoded yet."""
        return FIRST_GUESS_BYTES if self._largest_bytes is None else self._largest_bytes

    def has_room(self, lane: Lane) -> bool:
        """Whether the lane may hold another decoded unit, so that another decoder would be of use."""
        return lane.bytes_in_flight.held + self._guess() <= self._lane_bytes

    def orphan(self, idle: Lane, worker: Worker) -> Work | None:
        """Return a suspect of a process of the same kind that is down, and may stay so."""
        for lane in self._lanes:
            for other in lane.workers:
                if other.kind == worker.kind and other.state is not State.READY and other.suspects:
                    work = other.suspects.popleft()
                    work.hold(idle.bytes_in_flight, work.nbytes)
                    return work
        return None

    def _refill(self, lane: Lane) -> bool:
        """Give the lane its next shard, or, when the plan is at its end, the last unit of the longest queue."""
        shard = self._next_shard()
        if shard is not None:
            self._unfinished[shard.name] += len(shard.units)
            lane.queue.extend(Work(unit, shard.name) for unit in sorted(shard.units, key=_long_first))
            return True
        richest = max(self._lanes, key=lambda other: len(other.queue))
        if richest.queue and richest is not lane:
            lane.queue.append(richest.queue.pop())
            while richest.queue and _batch_of(richest.queue[-1], lane.queue) is not None:
                lane.queue.appendleft(richest.queue.pop())
        return bool(lane.queue)

    def _next_shard(self) -> Shard | None:
        """Return the next shard that is free, first among those that another build had."""
        if self._held_by_others and time.monotonic() > self._ask_after:
            for _ in range(len(self._held_by_others)):
                shard = self._held_by_others.popleft()
                if self._is_free(shard):
                    return shard
                self._held_by_others.append(shard)
            self._ask_after = time.monotonic() + ASK_AGAIN_S
        while not self._is_exhausted:
            try:
                next_shard = next(self._shards, None)
            except SourceError as exc:
                next_shard, self.problem = None, str(exc)
            if next_shard is None:
                self._is_exhausted = True
            elif self._is_free(next_shard):
                return next_shard
            else:
                self._held_by_others.append(next_shard)
        return None

    def _is_free(self, shard: Shard) -> bool:
        return self._claims is None or self._claims.take(shard.name)


def _batch_of(work: Work, works: Sequence[Work]) -> object:
    """Return the batch that a unit has in common with others; None if it has none."""
    return work.unit.batch if works and work.unit.batch == works[0].unit.batch else None


def _long_first(unit: Unit) -> int:
    """Order by falling file size, so that no long video is left to the end, when nothing runs beside it any more."""
    if not isinstance(unit.sample, VideoSample) or not isinstance(unit.sample.path, Path):
        return 0  # what lies behind a URL would have to be asked for its size
    try:
        return -os.stat(unit.sample.path).st_size
    except OSError:
        return 0  # the decoder will say what is wrong with it
