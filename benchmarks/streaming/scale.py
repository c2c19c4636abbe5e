"""How much each row of streaming's benchmark does: enough to judge by, or just to show that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts, lengths and where the model runs."""

    rounds: int = 7
    model: str = "small"  # or a checkpoint folder; the cache of `snapshot` is always of the 3B model's shape
    device: str = "cpu"
    dtype: str | None = None  # None: the model's own
    snapshot_tokens: tuple[int, ...] = (256, 1024, 4096, 16384)
    stream_tokens: tuple[int, ...] = (256, 1024, 4096, 16384)
    side: int = 112  # pixels of a frame
    chunk_frames: int = 4
    repeats: int = 5  # of one operation in a round
    chunks: int = 10_000  # of the endless stream
    evict_at: int = 600  # tokens
    choice_tokens: int = 1024  # of the stream whose questions have choices


QUICK = Scale(
    rounds=1,
    snapshot_tokens=(8, 16),
    stream_tokens=(40, 80),
    side=56,
    repeats=1,
    chunks=40,
    evict_at=120,
    choice_tokens=40,
)
