"""Which frames of an endless stream are kept: the most recent ones, and those at which something changed."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from consumers.numeric_options import require_numbers, require_whole_numbers
from consumers.streaming.frame_files import FrameFiles
from consumers.streaming.frames import as_frame, check_order

SCORED_SIDE = 224


@dataclass(frozen=True)
class KeptFrame:
    """A frame of a memory, without its pixels."""

    index: int  # of all frames that were added, from 0
    timestamp: float  # seconds
    importance: float
    is_pil: bool


class SmartFrameManager:
    """Two memories of one stream: the last `stream_window_size` frames, and up to `star_memory_size` star frames.

    A frame is scored at 224 x 224: motion is the mean absolute difference to the previous frame / 255, complexity the
    standard deviation of the channels' mean / 128, importance 0.7 motion + 0.3 complexity, and 1.0 for the first. The
    first frame, scene changes (motion above `scene_change_threshold`) and frames above `importance_threshold` become
    star frames; when there are too many, the least important one of them goes (of equals the oldest), never the first.

    Below a scene change importance stays under 0.51, so at the default threshold of 0.6 only scene changes enter; pass
    `importance_threshold=0.25`, say, to keep busy pictures that move some too. With `use_disk_cache` pixels lie in
    an unnamed file, bit for bit, which is gone when the manager is, however its process ends. A forked child may not
    use frames that its parent keeps there; it may `reset`.
    """

    def __init__(
        self,
        star_memory_size: int = 20,
        stream_window_size: int = 20,
        importance_threshold: float = 0.6,
        scene_change_threshold: float = 0.3,
        use_disk_cache: bool = True,
    ) -> None:
        require_whole_numbers(star_memory_size=star_memory_size, stream_window_size=stream_window_size)
        require_numbers(importance_threshold=importance_threshold, scene_change_threshold=scene_change_threshold)
        if star_memory_size < 0 or stream_window_size < 1:
            raise ValueError(
                f"star_memory_size must be at least 0 and stream_window_size at least 1, got {star_memory_size} and "
                f"{stream_window_size}"
            )
        if math.isnan(importance_threshold) or math.isnan(scene_change_threshold):
            raise ValueError(
                f"importance_threshold and scene_change_threshold must be numbers, got {importance_threshold} and "
                f"{scene_change_threshold}"
            )
        self._star_size, self._window = star_memory_size, stream_window_size
        self._importance_threshold, self._scene_threshold = importance_threshold, scene_change_threshold
        self._pixels = FrameFiles(on_disk=use_disk_cache)
        weakref.finalize(self, self._pixels.clear)
        self._begin()

    def _begin(self) -> None:
        self._star: list[KeptFrame] = []
        self._stream: deque[KeptFrame] = deque()
        self._scene_changes = 0
        self._total = 0
        self._previous: np.ndarray | None = None  # the last frame as it was scored
        self._last_time_s: float | None = None

    @property
    def total_added(self) -> int:
        """How many frames were added since the beginning."""
        return self._total

    def add_frame(self, frame: Any, timestamp: float) -> dict[str, Any]:
        """Add a frame: a PIL image, or uint8 [height, width, 3] RGB; returns what became of it.

        `{added_to_star, reason, importance, star_count, stream_count}`; `reason` is "first frame", "scene change",
        "importance" or, for no star frame, "".

        Raises:
            TimeRunsBackwards: `timestamp`, in seconds, lies before the last one. The memories are as they were.
            ValueError: it is no such frame, or no finite time of at most `frames.MOST_SECONDS`.
            FramesOfParent: this process was forked, and the frames on disk are its parent's.
        """
        pixels = as_frame(frame)
        check_order([timestamp], self._last_time_s)
        scored = np.asarray(Image.fromarray(pixels).resize((SCORED_SIDE, SCORED_SIDE), Image.Resampling.BILINEAR))
        importance, reason = self._judged(scored.astype(np.float32))
        kept = KeptFrame(self._total, float(timestamp), importance, isinstance(frame, Image.Image))
        self._pixels.put(kept.index, pixels)
        self._total, self._last_time_s, self._previous = self._total + 1, kept.timestamp, scored.astype(np.float32)
        self._scene_changes += reason == "scene change"
        self._stream.append(kept)
        if len(self._stream) > self._window:
            self._stream.popleft()
        if reason and not self._enters_star(kept):
            reason = ""
        self._pixels.keep({frame.index for frame in (*self._star, *self._stream)})
        return {
            "added_to_star": bool(reason),
            "reason": reason,
            "importance": importance,
            "star_count": len(self._star),
            "stream_count": len(self._stream),
        }

    def _judged(self, scored: np.ndarray) -> tuple[float, str]:
        if self._previous is None:
            return 1.0, "first frame"
        motion = float(np.abs(scored - self._previous).mean()) / 255
        complexity = float(scored.mean(axis=2).std()) / 128
        importance = 0.7 * motion + 0.3 * complexity
        if motion > self._scene_threshold:
            return importance, "scene change"
        return importance, "importance" if importance > self._importance_threshold else ""

    def _enters_star(self, kept: KeptFrame) -> bool:
        if len(self._star) >= self._star_size:
            leaving = min(self._star[1:], key=lambda frame: frame.importance, default=None)
            if leaving is None:  # there is room for the first frame alone, or for none
                return False
            self._star.remove(leaving)
        self._star.append(kept)
        return True

    def stars(self) -> list[KeptFrame]:
        """Return the star frames in time order."""
        return sorted(self._star, key=lambda frame: frame.index)

    def union(self) -> list[KeptFrame]:
        """Return the frames of both memories, each once, in time order."""
        by_index = {frame.index: frame for frame in (*self._star, *self._stream)}
        return [by_index[index] for index in sorted(by_index)]

    def pixels(self, kept: KeptFrame) -> np.ndarray:
        """Return a kept frame's pixels, uint8 [height, width, 3], as they were added.

        Raises:
            KeyError: it is in neither memory any more.
            FramesOfParent: as `add_frame`.
        """
        return self._pixels.get(kept.index)

    def get_all_frames(self) -> tuple[list[Any], list[float], dict[str, Any]]:
        """Return the union's frames, of the kind that was added, their timestamps, and its figures.

        `{star_frames, stream_frames, unique_frames, overlap_frames, total_added, compression_ratio, time_span,
        min_timestamp, max_timestamp}`, times in seconds, None without frames.
        """
        kept = self.union()
        times = [frame.timestamp for frame in kept]
        frames = [Image.fromarray(self.pixels(f)) if f.is_pil else self.pixels(f) for f in kept]
        return frames, times, self._figures(times)

    def _figures(self, times: Sequence[float]) -> dict[str, Any]:
        return {
            "star_frames": len(self._star),
            "stream_frames": len(self._stream),
            "unique_frames": len(times),
            "overlap_frames": len(self._star) + len(self._stream) - len(times),
            "total_added": self._total,
            "compression_ratio": self._total / len(times) if times else 1.0,
            "time_span": times[-1] - times[0] if times else 0.0,
            "min_timestamp": times[0] if times else None,
            "max_timestamp": times[-1] if times else None,
        }

    def get_statistics(self) -> dict[str, Any]:
        """Return `{total_frames_added, star_memory_size, stream_memory_size, unique_frames, compression_ratio, ...}`.

        The sizes count what is there now; `compression_ratio` is text, as in "1.67x".
        """
        figures = self._figures([frame.timestamp for frame in self.union()])
        return {
            "total_frames_added": figures["total_added"],
            "star_memory_size": figures["star_frames"],
            "stream_memory_size": figures["stream_frames"],
            "unique_frames": figures["unique_frames"],
            "overlap_frames": figures["overlap_frames"],
            "compression_ratio": f"{figures['compression_ratio']:.2f}x",
            "scene_changes": self._scene_changes,
            "time_span": figures["time_span"],
            "pixel_bytes": self._pixels.nbytes,
        }

    def reset(self) -> None:
        """Forget all frames and free their file."""
        self._pixels.clear()
        self._begin()
