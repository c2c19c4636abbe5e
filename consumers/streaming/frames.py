"""Frames as they come in: checked, and of one size per stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from consumers.streaming.errors import FrameSizeChanged, TimeRunsBackwards


def as_frame(image: Any) -> np.ndarray:
    """Return an image as uint8 [height, width, 3] RGB: a PIL image, or an array or CPU tensor of that form.

    Raises:
        ValueError: it is something else.
    """
    if hasattr(image, "convert"):
        image = image.convert("RGB")
    frame = np.asarray(image)
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
        ValueError: one is no finite number.
    """
    for time_s in times_s:
        if not _is_finite(time_s):
            raise ValueError(f"a timestamp must be a finite number of seconds, got {time_s!r}")
        if previous_s is not None and time_s < previous_s:
            raise TimeRunsBackwards(time_s, previous_s)
        previous_s = time_s


def _is_finite(time_s: object) -> bool:
    try:
        return math.isfinite(time_s)  # type: ignore[arg-type]
    except TypeError:  # no number
        return False
