"""How much each row of the consumers' benchmark reads, trains and asks: enough to measure, or to show that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts and sizes of a run."""

    rounds: int = 5
    features: int = 4_000  # read by loaders, `[1, 1, width]` float16
    width: int = 3072
    batch: int = 64
    workers: tuple[int, ...] = (0, 2, 4)
    episodes: int = 8
    poses: int = 1_000  # of an episode: ten seconds
    videos: int = 4
    video_frames: int = 300
    video_size: tuple[int, int] = (640, 360)
    nframe: int = 64
    questions: int = 3  # about each video


QUICK = Scale(
    rounds=1,
    features=60,
    width=32,
    batch=20,
    workers=(0, 2),
    episodes=2,
    poses=300,
    videos=2,
    video_frames=20,
    video_size=(96, 64),
    nframe=8,
)
