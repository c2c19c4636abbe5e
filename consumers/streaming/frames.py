"""Frames as they come in: checked, and of one size per stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from consumers.numeric_options import require_numbers
from consumers.streaming.errors import FrameSizeChanged, TimeRunsBackwards
from pipeline.errors import MediaError

# Three thousand years: positions stay numbers that every kernel can hold. Unix time lies far below, unless it is in
# milliseconds.
MOST_SECONDS = 1e11


def as_frame(image: Any) -> np.ndarray:
    """Return an image as uint8 [height, width, 3] RGB: a PIL image, or an array or CPU tensor of that form.

    Raises:
        ValueError: it is something else, or a PIL image of more than 8 bits per channel, which PIL would clip.
        MediaError: a PIL image's file, which is read here, is cut short or damaged; the message names it.
    """
    if hasattr(image, "convert"):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"expected a PIL image of 8 bits per channel, got mode {image.mode}; scale it to uint8")
        try:
            image = image.convert("RGB")
        # PIL reports damage as OSError, ValueError, SyntaxError, struct.error and more.
        except Exception as exc:
            raise MediaError(f"{getattr(image, 'filename', '') or image}: not a readable image: {exc}") from exc
    try:
        frame = np.asarray(image)
    except (TypeError, RuntimeError) as exc:  # a tensor on a GPU, with a graph, or of a dtype that numpy lacks
        raise ValueError(f"expected a PIL image or a frame uint8 [height, width, 3]: {exc}") from exc
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"expected a PIL image or a frame uint8 [height, width, 3], got {frame.dtype} {frame.shape}")
    return frame


def check_size(frame: np.ndarray, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return the frame's (height, width), which must be `wanted` if that is known.

    Raises:
        FrameSizeChanged: it is another one.
    """
    size = (int(frame.shape[0]), int(frame.shape[1]))
    if wanted is not None and size != wanted:
        raise FrameSizeChanged(size, wanted)
    return size


def check_order(times_s: list[float], previous_s: float | None) -> None:
    """Check that times do not fall, `previous_s` before them included.

    Raises:
        TimeRunsBackwards: they do.
        ValueError: one is no finite number, or beyond `MOST_SECONDS`.
    """
    for time_s in times_s:
        if not _is_time(time_s):
            raise ValueError(
                f"a timestamp must be a finite number of seconds, at most {MOST_SECONDS:g} either way, got {time_s!r}"
            )
        if previous_s is not None and time_s < previous_s:
            raise TimeRunsBackwards(time_s, previous_s)
        previous_s = time_s


def check_rate(fps: float, *, frames: int) -> None:
    """Check a rate at which a video has come to `frames` frames.

    Raises:
        ValueError: it is no finite number above 0, or the last frame's time is beyond `MOST_SECONDS`.
    """
    require_numbers(fps=fps)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be a finite number above 0, got {fps}")
    if frames / fps > MOST_SECONDS:
        raise ValueError(f"fps {fps} makes {frames} frames last longer than {MOST_SECONDS:g} s")


def _is_time(time_s: Any) -> bool:
    try:
        return math.isfinite(0.0 + time_s) and abs(time_s) <= MOST_SECONDS
    except (TypeError, OverflowError):  # no number, one that does not go with floats, or none that they can hold
        return False
