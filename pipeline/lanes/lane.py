"""One lane: an encoder, its decoders and the work between them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipeline.lanes.report import LaneProgress
from pipeline.lanes.worker import State, Work, Worker


@dataclass(eq=False)
class Lane:
    """The state of one lane, as the scheduler keeps it."""

    name: str
    encoder: Worker
    decoders: list[Worker] = field(default_factory=list)
    queue: deque[Work] = field(default_factory=deque)  # pulled, not yet decoded
    decoded: deque[Work] = field(default_factory=deque)  # waiting for the encoder
    bytes_in_flight: int = 0  # decoded or being decoded, not yet encoded
    done: int = 0
    device: str = ""

    @property
    def workers(self) -> list[Worker]:
        """Every process of the lane, the encoder first."""
        return [self.encoder, *self.decoders]

    def progress(self) -> LaneProgress:
        """Return the lane as a person sees it."""
        restarts = sum(worker.restarts for worker in self.workers)
        if self.encoder.state is not State.READY:
            state = "recovering" if self.encoder.restarts else "starting"
        else:
            state = "running" if any(worker.in_flight for worker in self.workers) else "idle"
        return LaneProgress(self.name, state, self.device, self.done, len(self.queue), self.bytes_in_flight, restarts)
