"""Sources without files of their own: any number of empty steps, and one video under any number of names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources import IgnoredFile, StepSample, VideoSample

EPISODE_STEPS = 64  # one shard of the plan


@dataclass(frozen=True)
class EmptySteps:
    """Steps without any image: decoding one is an empty loop."""

    count: int

    def __iter__(self) -> Iterator[StepSample]:
        for number in range(self.count):
            episode, step = divmod(number, EPISODE_STEPS)
            yield StepSample(f"episode_{episode:06d}", step, (), "pick the block")

    def ignored(self) -> list[IgnoredFile]:
        """Nothing is passed over."""
        return []


@dataclass(frozen=True)
class OneVideo:
    """One file under many names, so that a build never runs out of videos."""

    path: Path
    count: int

    def __iter__(self) -> Iterator[VideoSample]:
        for number in range(self.count):
            yield VideoSample("benchmark", f"video_{number:06d}", self.path, self.path.name)

    def ignored(self) -> list[IgnoredFile]:
        """Nothing is passed over."""
        return []
