"""A video file as a stream: frames at a steady rate, decoded chunk by chunk while they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.vision.open_video import OpenVideo


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """One frame, and when it is shown."""

    pixels: np.ndarray  # uint8 [height, width, 3], RGB
    time_s: float  # seconds from the video's start


def steady_indices(times_s: np.ndarray, fps: float) -> list[int]:
    """Choose the frames nearest to 0, 1 / fps, 2 / fps, ... seconds after the first one.

    Ascending, without repeats; a video of a lower rate than `fps` yields every frame once.

    Args:
        times_s: float64 [frames], ascending, at least one.
    """
    # The last frame's time may be a rounding error below its tick.
    ticks = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / fps)
    after = np.clip(np.searchsorted(times_s, ticks), 1, max(1, len(times_s) - 1))
    after = np.minimum(after, len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    is_nearer_before = ticks - times_s[before] <= times_s[after] - ticks
    return [int(index) for index in np.unique(np.where(is_nearer_before, before, after))]


def video_chunks(path: Path, *, size: int, fps: float) -> Iterator[list[TimedFrame]]:
    """Yield a file's frames, `fps` in a second, in chunks of `size`; the last chunk may be shorter.

    Raises:
        MediaError: the file is no video, or is damaged where the next chunk lies.
    """
    video = OpenVideo(path)
    times_s = video.survey.times_s
    indices = steady_indices(times_s, fps)
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        frames, _ = video.first_that_succeeds(lambda reader, part=part: list(reader.frames(part)))  # type: ignore[misc]
        yield [TimedFrame(frame, float(times_s[index])) for frame, index in zip(frames, part, strict=True)]
