"""One process of a lane as the scheduler sees it: what is in flight on it, and whom to suspect when it dies.

A process that dies takes all its calls with it, though only one of them can be to blame. So each of them becomes a
suspect and is called again alone; who dies alone, again, is the culprit, and its neighbours are innocent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from pipeline.work_plan import Unit

# The last four are no subclasses of RayActorError, though each means that the process or its node went away.
PROCESS_LOST = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, ObjectLostError)

# Two deaths with nothing else in flight: the first may still have been a preempted node or an impatient operator.
LONELY_DEATHS = 2
# More than any single unit can cause: then the process itself is what fails.
DEATHS_WITHOUT_RESULT = 10
RESTART_WAIT_S = 0.5


@dataclass(eq=False)
class Work:
    """One unit on its way through one stage."""

    unit: Unit
    pixels: Any = None  # ObjectRef of the decoded unit, for the encoder
    nbytes: int = 0  # what it counts against the lane's limit
    alone: bool = False  # a suspect: nothing else may be in flight beside it
    lonely_deaths: int = 0


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
    state: State = State.DRAINING
    in_flight: dict[Any, Work] = field(default_factory=dict)  # by ObjectRef, oldest first
    suspects: deque[Work] = field(default_factory=deque)
    ping: Any = None  # ObjectRef of the pending ready()
    restarts: int = 0
    deaths_without_result: int = 0
    _head_since: float = 0.0  # when the oldest call became the oldest, on the monotonic clock
    _ask_after: float = 0.0  # on the monotonic clock

    def ask_ready(self) -> None:
        """Ask a process that is new, or that died, to answer as soon as it can work.

        After a death not before all its calls have come back, and ever more slowly if it keeps dying.
        """
        if self.state is State.DRAINING and not self.in_flight and time.monotonic() >= self._ask_after:
            self.state, self.ping = State.STARTING, self.actor.ready.remote()

    def answered(self) -> None:
        """Note that the process can be called."""
        self.state, self.ping = State.READY, None

    def admit(self, fresh: Callable[[], Work | None]) -> Work | None:
        """Return what may be called now: a suspect if nothing else is in flight, else fresh work, else None."""
        if self.state is not State.READY:
            return None
        if self.suspects:
            if self.in_flight:
                return None
            suspect = self.suspects.popleft()
            suspect.alone = True
            return suspect
        if len(self.in_flight) >= self.depth or any(work.alone for work in self.in_flight.values()):
            return None
        return fresh()

    def started(self, call: Any, work: Work) -> None:
        """Note that `call` (an ObjectRef) is in flight for `work`."""
        if not self.in_flight:
            self._head_since = time.monotonic()
        self.in_flight[call] = work

    def ended(self, call: Any) -> Work:
        """Note that `call` came back, with a result or not; returns its work."""
        self._head_since = time.monotonic()
        return self.in_flight.pop(call)

    def died(self) -> None:
        """Note that the process was lost. Its other calls will come back as lost too."""
        if self.state is State.DRAINING:
            return
        self.restarts += 1
        self.deaths_without_result += 1
        self._ask_after = time.monotonic() + RESTART_WAIT_S * min(self.deaths_without_result, 20)
        self.state, self.ping = State.DRAINING, None

    def blame(self, work: Work) -> bool:
        """Return whether `work`, lost with its process, is the culprit; if not proven, it becomes a suspect."""
        work.lonely_deaths += work.alone
        if work.lonely_deaths >= LONELY_DEATHS:
            return True
        self.suspects.append(work)
        return False

    def overdue(self, limit_s: float) -> bool:
        """Return whether the oldest call has been the oldest for longer than `limit_s`."""
        return bool(self.in_flight) and time.monotonic() - self._head_since > limit_s

    def kill(self) -> None:
        """End the process; Ray starts it again, and its calls come back as lost."""
        # Not asked again for this kill: the calls of the dead process must come back first.
        self._head_since = time.monotonic()
        ray.kill(self.actor, no_restart=False)
