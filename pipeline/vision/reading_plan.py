"""Where to seek and where to read on, so that the wanted frames of one video cost the least decoding."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.vision.survey import INDEXED_CONTAINERS, Survey

# What things cost, in microseconds, on the machine where we measured; their proportions are what matters. A seek
# throws away what the decoder has begun, and the first picture behind it waits for the file.
SEEK_US = 110.0
FRAME_US = 15.0
PIXEL_US = 0.0005
BYTE_US = 0.02


@dataclass(frozen=True)
class Run:
    """A stretch that is decoded without a seek inside."""

    start: int  # the frame to begin decoding at: a keyframe, or 0 for the beginning of the file
    wanted: tuple[int, ...]  # ascending, none repeated; shown at or after `start`


def can_seek(survey: Survey) -> bool:
    """Tell whether frames can be found again after a seek."""
    return survey.has_times and survey.container in INDEXED_CONTAINERS | {"images"}


def keyframe_before(survey: Survey, index: int) -> int:
    """Return the keyframe that decoding must start at to get frame `index`; 0 where nobody can seek."""
    if not can_seek(survey):
        return 0
    place = bisect_right(survey.keyframes, index)
    return survey.keyframes[place - 1] if place else 0


def reading_plan(survey: Survey, indices: Sequence[int]) -> list[Run]:
    """Cut ascending `indices`, none repeated, into runs: before each one the reader seeks.

    Between two wanted frames the reader decodes everything on the way, or seeks to the second one's keyframe,
    whichever is estimated to be cheaper from the sizes of the packets between them. So the whole is at least as
    cheap as seeking to every needed group of pictures, and as reading through.
    """
    runs: list[tuple[int, list[int]]] = []
    frames = survey.frames
    done = -1  # in decode order, the last packet that the open run needs
    for index in indices:
        keyframe = keyframe_before(survey, index)
        if not runs or _cost_us(survey, done + 1, frames[keyframe].decode_order) > SEEK_US:
            runs.append((keyframe, []))
        runs[-1][1].append(index)
        done = max(done, frames[index].decode_order)
    return [Run(start, tuple(wanted)) for start, wanted in runs]


def _cost_us(survey: Survey, first: int, end: int) -> float:
    """Estimate what decoding the packets [first, end) in decode order takes; 0 or less: there are none."""
    if end <= first:
        return 0.0
    per_frame = FRAME_US + PIXEL_US * survey.width * survey.height
    sizes = survey.packet_ends
    return (end - first) * per_frame + BYTE_US * (sizes[end - 1] - (sizes[first - 1] if first else 0))
