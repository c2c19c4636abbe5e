"""What a tab shows, as values: the stream's state, its star frames, and what was asked."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("empty", "streaming", "paused", "ended", "failed")


@dataclass(frozen=True)
class MemoryPoint:
    """How large the cache was after a chunk."""

    chunk: int  # from 1
    nbytes: int


@dataclass(frozen=True)
class Star:
    """One frame of the star memory."""

    time_s: float
    reason: str  # "first frame", "scene change" or "importance"
    importance: float
    picture: str  # a small JPEG as a data URI


@dataclass(frozen=True)
class Status:
    """A stream after its last chunk."""

    state: str = "empty"  # one of STATES
    message: str = ""  # why it failed
    is_webcam: bool = False
    is_asking: bool = False  # a question holds the stream
    chunks: int = 0
    frames: int = 0
    tokens: int = 0
    evicted_tokens: int = 0
    cache_bytes: int = 0
    time_s: float = 0.0  # of the last frame
    history: tuple[MemoryPoint, ...] = ()
    stars: tuple[Star, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question and what is there of its answer."""

    number: int  # within the session
    question: str
    time_s: float  # of the stream's last frame when it was asked
    text: str = ""
    shares: tuple[tuple[str, float], ...] = ()  # of a multiple choice: each choice and its share of the probability
    error: str = ""
    outcome: str = "running"  # or "done" or "stopped"
    ttft_s: float = 0.0  # seconds from the question to the first token
    total_s: float = 0.0  # until all was said
