"""One lane: an encoder, its decoders and the work between them."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

from pipeline.lanes.pace import LanePace
from pipeline.lanes.report import LaneProgress
from pipeline.lanes.worker import ByteCount, State, Work, Worker

# How long an encoder is watched before its lane gets more decoders, and how much of that it may idle.
WATCH_S = 2.0
IDLE_SHARE = 0.05


@dataclass(eq=False)
class Lane:
    """The state of one lane, as the scheduler keeps it."""

    name: str
    encoder: Worker
    decoders: list[Worker] = field(default_factory=list)
    queue: deque[Work] = field(default_factory=deque)  # pulled, not yet decoded
    decoded: deque[Work] = field(default_factory=deque)  # waiting for the encoder
    bytes_in_flight: ByteCount = field(default_factory=ByteCount)
    done: int = 0
    device: str = ""
    pace: LanePace = field(default_factory=LanePace)
    _watched_s: float = 0.0
    _starved_s: float = 0.0
    _looked_at: float = field(default_factory=time.monotonic)

    @property
    def workers(self) -> list[Worker]:
        """Every process of the lane, the encoder first."""
        return [self.encoder, *self.decoders]

    def decoders_wanted(self) -> int:
        """Watch the lane; return how many more decoders would keep its encoder busy, asked often and mostly 0.

        Starved is an encoder with nothing in flight while every decoder works: then decoding is what is slow.
        """
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        ready = [worker.state is State.READY for worker in self.workers]
        if not self.decoders or not all(ready):
            self._watched_s = self._starved_s = 0.0
            return 0
        self._watched_s += passed_s
        if not self.encoder.in_flight and all(decoder.in_flight for decoder in self.decoders):
            self._starved_s += passed_s
        if self._watched_s < WATCH_S:
            return 0
        idle = self._starved_s / self._watched_s
        self._watched_s = self._starved_s = 0.0
        if idle < IDLE_SHARE:
            return 0
        # While the encoder works a share 1 - idle of the time, n decoders are that share of what it needs.
        return max(1, math.ceil(len(self.decoders) / max(1 - idle, 0.125)) - len(self.decoders))

    def progress(self, now_s: float) -> LaneProgress:
        """Return the lane as a person sees it."""
        restarts = sum(worker.restarts for worker in self.workers)
        if self.encoder.state is not State.READY:
            state = "recovering" if self.encoder.restarts else "starting"
        else:
            state = "running" if any(worker.in_flight for worker in self.workers) else "idle"
        decoded, encoded, written, busy = self.pace.rates(now_s)
        return LaneProgress(
            self.name,
            state,
            self.device,
            done=self.done,
            decoders=len(self.decoders),
            decoded_per_s=decoded,
            encoded_per_s=encoded,
            written_per_s=written,
            busy_share=busy,
            queue_bytes=self.bytes_in_flight.held,
            restarts=restarts,
        )
