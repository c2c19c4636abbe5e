"""When the groups of frames of one video lie, counted over its chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from consumers.streaming.frames import check_rate
from consumers.streaming.positions import tick_of_frame, tick_of_time


@dataclass(frozen=True)
class ChunkClock:
    """How far a video has come; `advance` returns the clock after another chunk, and this one stays as it is."""

    tokens_per_second: float
    frames_per_grid: int
    frames: int = 0
    fps: float | None = None  # of a video without timestamps
    origin_s: float | None = None  # the first frame's time, of a video with timestamps

    def fresh(self) -> ChunkClock:
        """Return a clock at the start of another video."""
        return ChunkClock(self.tokens_per_second, self.frames_per_grid)

    def advance(self, frames: int, *, fps: float, times: list[float | None]) -> tuple[ChunkClock, list[int]]:
        """Return the clock after `frames` more, and the tick of each of their groups: that of its first frame.

        Args:
            times: seconds, one for each frame and for each repetition that fills the last group, or None each.

        Raises:
            ValueError: the rate is out of range, or the video's times were told in another way before.
        """
        if any(time is None for time in times) and any(time is not None for time in times):
            raise ValueError("one video has timestamps for all of its frames, or for none")
        starts = range(0, len(times), self.frames_per_grid)
        first = times[0] if times else None
        check_rate(fps, frames=self.frames + len(times) if first is None else 0)
        if first is None:
            self._check(is_timed=False, fps=fps)
            ticks = [tick_of_frame(self.frames + i, fps=fps, tokens_per_second=self.tokens_per_second) for i in starts]
            return replace(self, frames=self.frames + frames, fps=fps), ticks
        self._check(is_timed=True, fps=fps)
        origin = first if self.origin_s is None else self.origin_s
        offsets = [(times[i] or 0.0) - origin for i in starts]
        ticks = [tick_of_time(offset, tokens_per_second=self.tokens_per_second) for offset in offsets]
        return replace(self, frames=self.frames + frames, origin_s=origin), ticks

    def _check(self, *, is_timed: bool, fps: float) -> None:
        if self.frames and is_timed != (self.origin_s is not None):
            raise ValueError("one video has timestamps for all of its frames, or for none")
        if self.frames and not is_timed and fps != self.fps:
            raise ValueError(f"the video came at {self.fps} frames per second so far, now at {fps}; pass timestamps")
