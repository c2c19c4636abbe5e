"""Clips of a video: which frames lie between two bounds in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.survey import Survey


@dataclass(frozen=True)
class Cut:
    """One clip of a video; without bounds the whole of it."""

    start_s: float | None = None  # seconds from the video's start
    end_s: float | None = None


def frames_of(cut: Cut, survey: Survey) -> range:
    """Return the frames of a clip: those nearest to both bounds, and all between them.

    At a steady rate these are round(start_s * fps) to round(end_s * fps), as MVBench defines its clips; elsewhere
    the frames nearest in time, the earlier one of two. An end behind the video's is the video's.

    Raises:
        MediaError: the clip holds no frame, or a folder of images came without a rate. One line, without the file.
    """
    if cut.start_s is None and cut.end_s is None:
        return range(survey.num_frames)
    if math.isnan(survey.average_fps):
        raise MediaError("a folder of images has no clips unless its frame rate is given")
    first = 0 if cut.start_s is None else max(0, _nearest(survey, cut.start_s))
    last = survey.num_frames - 1
    end = last if cut.end_s is None else min(last, _nearest(survey, cut.end_s))
    if first > end:
        raise MediaError(
            f"no frame between {cut.start_s} s and {cut.end_s} s; the last is shown at {survey.times_s[-1]:.3f} s"
        )
    return range(first, end + 1)


def _nearest(survey: Survey, bound_s: float) -> int:
    """Return the index of the frame nearest to a bound; below 0 or beyond the last frame where the bound is.

    Source: MVBench's `get_index`, which rounds seconds times the average rate.
    """
    first_s, fps = float(survey.times_s[0]), survey.average_fps
    if survey.is_steady:
        return round(bound_s * fps) - round(first_s * fps)
    last_s = float(survey.times_s[-1])
    if not first_s - 0.5 / fps <= bound_s <= last_s + 0.5 / fps:
        return -1 if bound_s < first_s else survey.num_frames
    return int(np.argmin(np.abs(survey.times_s - bound_s)))
