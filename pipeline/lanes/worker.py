"""One process of a lane as the scheduler sees it: what is in flight on it, and whom to suspect when it dies.

A call carries one unit, or several that take less time than a call does. A process that dies takes all its calls with
it, though only one unit can be to blame. So each of them becomes a suspect and is called again alone; who dies alone,
again, is the culprit, and its neighbours are innocent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal

import ray

from pipeline.work_plan import Unit

# Two deaths with nothing else in flight: the first may still have been a preempted node or an impatient operator.
LONELY_DEATHS = 2
RESTART_WAIT_S = 0.5
# Units of few bytes may be in flight in larger numbers, so that many are published with one flush.
SMALL_TOGETHER_BYTES = 8 * 2**20


@dataclass(eq=False)
class ByteCount:
    """Bytes in flight of one lane: decoded or being decoded, not yet encoded."""

    held: int = 0


@dataclass(frozen=True)
class Decoded:
    """When and where a unit was decoded."""

    lane: str
    begin_s: float  # since the build's start, as `end_s`
    end_s: float
    attempts: int


@dataclass(eq=False)
class Work:
    """One unit on its way through one stage."""

    unit: Unit
    shard: str = ""
    pixels: Any = None  # ObjectRef of what its decoder's call gave, for the encoder
    place: int = 0  # of the unit among those
    nbytes: int = 0  # what it counts against its lane's limit
    attempts: int = 0  # calls of the present stage
    alone: bool = False  # a suspect: nothing else may be in flight beside it
    lonely_deaths: int = 0
    maybe_done: bool = False  # an encoder had it and was lost: the store may hold it
    met_oom_killer: bool = False  # the kernel ended processes for want of memory when one was lost with it alone
    decoded: Decoded | None = None
    _account: ByteCount = field(default_factory=ByteCount)

    def hold(self, account: ByteCount, nbytes: int) -> None:
        """Count the work's bytes on `account`, and no longer where they were counted before."""
        self._account.held -= self.nbytes
        account.held += nbytes
        self._account, self.nbytes = account, nbytes

    def release(self) -> None:
        """Let go of the pixels and their bytes."""
        self.hold(self._account, 0)
        self.pixels = None

    def enter_next_stage(self) -> None:
        """Forget what happened in the stage before: its blame is not carried on."""
        self.attempts, self.alone, self.lonely_deaths, self.met_oom_killer = 0, False, 0, False


def _alone(work: Work) -> Work:
    work.alone = True
    return work


class State(Enum):
    """Whether a process can be called."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()  # it died; its other calls are still coming back as lost


@dataclass(eq=False)
class Worker:
    """A process of a lane and its calls."""

    actor: Any
    kind: Literal["decode", "encode"]
    depth: int  # calls in flight at most
    most_depth: int = 0  # the same while they are few bytes, and wait for something else than their turn
    state: State = State.DRAINING
    node_id: str = ""
    host: str = ""
    in_flight: dict[Any, list[Work]] = field(default_factory=dict)  # the units of each call, oldest first
    suspects: deque[Work] = field(default_factory=deque)
    ping: Any = None  # ObjectRef of the pending ready()
    restarts: int = 0
    deaths_without_result: int = 0
    is_told_late: bool = False  # of this start somebody has been told that it takes long
    _lost: list[Work] = field(default_factory=list)  # alone, with the process that is to answer
    _oom_kills: int | None = None  # where the process is, when it came up
    _waiting: int = 0  # calls that can be worked on while one waits
    _head_since: float = 0.0  # when the oldest call became the oldest, on the monotonic clock
    _ask_after: float = 0.0  # on the monotonic clock
    _asked_at: float = 0.0  # the same

    def ask_ready(self) -> None:
        """Ask a process that is new, or that died, to answer as soon as it can work.

        After a death not before all its calls have come back, and ever more slowly if it keeps dying.
        """
        if self.state is State.DRAINING and not self.in_flight and time.monotonic() >= self._ask_after:
            self.state, self.ping = State.STARTING, self.actor.ready.remote()
            self._asked_at, self.is_told_late = time.monotonic(), False

    def is_late(self, limit_s: float) -> bool:
        """Return whether the process has been starting for longer than `limit_s`."""
        return self.state is State.STARTING and time.monotonic() - self._asked_at > limit_s

    def answered(self, node_id: str, host: str, *, oom_kills: int | None = None) -> None:
        """Note that the process can be called, where it is, and how often the kernel has killed for memory there."""
        if node_id == self.node_id and (oom_kills or 0) > (self._oom_kills or 0):
            for work in self._lost:
                work.met_oom_killer = True
        self._lost.clear()
        self.state, self.ping = State.READY, None
        self.node_id, self.host, self._oom_kills = node_id, host, oom_kills

    def admit(self, fresh: Callable[[], list[Work]], orphan: Callable[[], Work | None]) -> list[Work]:
        """Return what the next call may carry: a suspect if nothing else is in flight, else fresh work, else nothing.

        A process with nothing to do takes an orphan, a suspect of another process that is down.
        """
        if self.state is not State.READY:
            return []
        if self.suspects:
            if self.in_flight:
                return []
            return [_alone(work) for work in self._next_suspects()]
        if self._is_full() or any(work.alone for works in self.in_flight.values() for work in works):
            return []
        works = fresh()
        if not works and not self.in_flight and (lost := orphan()) is not None:
            return [_alone(lost)]
        return works

    def _next_suspects(self) -> list[Work]:
        """Take the first suspect out, with those that would share its forward: together they are alone."""
        first, batch = self.suspects[0], self.suspects[0].unit.batch
        works = [
            work
            for work in self.suspects
            if work is first or (batch is not None and work.unit.batch == batch and work.pixels == first.pixels)
        ]
        for work in works:
            self.suspects.remove(work)
        return works

    def _is_full(self) -> bool:
        if len(self.in_flight) < self.depth:
            return False
        # Any more would only wait for their turn here, where no idle lane could take them.
        if len(self.in_flight) >= min(self.most_depth, self.depth + self._waiting):
            return True
        return sum(work.nbytes for works in self.in_flight.values() for work in works) >= SMALL_TOGETHER_BYTES

    def note_speed(self, work_s: float, wait_s: float) -> None:
        """Note how long the process worked on a call, and how long that waited besides, for disk or driver."""
        self._waiting = int(wait_s / max(work_s, 1e-4))

    def started(self, call: Any, works: list[Work]) -> None:
        """Note that `call` (an ObjectRef) is in flight for `works`."""
        if not self.in_flight:
            self._head_since = time.monotonic()
        for work in works:
            work.attempts += 1
        self.in_flight[call] = works

    def ended(self, call: Any) -> list[Work]:
        """Note that `call` came back, with a result or not; returns what it carried."""
        self._head_since = time.monotonic()
        return self.in_flight.pop(call)

    def died(self, *, is_preempted: bool = False) -> None:
        """Note that the process was lost. Its other calls will come back as lost too."""
        if self.state is State.DRAINING:
            return
        self.restarts += 1
        self.deaths_without_result += not is_preempted
        self._ask_after = time.monotonic() + RESTART_WAIT_S * min(self.deaths_without_result, 20)
        self.state, self.ping = State.DRAINING, None

    def not_yet(self) -> None:
        """Note that the process is still coming back, perhaps with a node that is not there yet: ask again later."""
        self._ask_after = time.monotonic() + 2 * RESTART_WAIT_S
        self.state, self.ping = State.DRAINING, None

    def suspect(self, works: Iterable[Work]) -> None:
        """Let units be called again alone, without blame so far."""
        self.suspects.extend(works)

    def blame(self, work: Work, *, is_preempted: bool = False) -> bool:
        """Return whether `work`, lost with its process, is the culprit; if not proven, it becomes a suspect."""
        work.lonely_deaths += work.alone and not is_preempted
        if work.lonely_deaths and work.unit.batch is not None:
            # One of its batch is to blame: from now on each is by itself, and its own deaths count.
            work.unit, work.lonely_deaths = work.unit.by_itself(), 0
        if work.lonely_deaths >= LONELY_DEATHS:
            return True
        if work.alone:
            self._lost.append(work)
        self.suspect([work])
        return False

    def overdue(self, limit_s: float) -> bool:
        """Return whether the oldest call has been the oldest for longer than `limit_s`."""
        return bool(self.in_flight) and time.monotonic() - self._head_since > limit_s

    def kill(self) -> None:
        """End the process; Ray starts it again, and its calls come back as lost."""
        # Not asked again for this kill: the calls of the dead process must come back first.
        self._head_since = time.monotonic()
        ray.kill(self.actor, no_restart=False)
