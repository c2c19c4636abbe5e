"""Capacity: how much of a video fits into memory, at several frame sizes, until the file ends or memory does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.errors import ContextTooLong
from consumers.streaming.reports.report import Cell, Curves, Report, Table
from consumers.streaming.reports.setting import Setting
from consumers.streaming.video_sequence import Wrapping
from pipeline.errors import MediaError
from pipeline.failures import is_out_of_memory

CHUNK_FRAMES, CHUNKS_PER_STEP = 4, 10
FRAME_SIZES = ("native", "224", "480p", "720p")
_FILM_FPS = 24
_ANY_PIXELS = 2**40  # the model's own bounds would make all sizes one
_USED_AT_MOST = 0.8  # of the CPU's free memory: beyond it the system ends processes instead of saying no
Row = dict[str, Cell]


class _NoMemory(Exception):
    """The limit that was set for a run is passed."""


def report_capacity(
    setting: Setting,
    *,
    sizes: Sequence[str] = FRAME_SIZES,
    limit_bytes: int | None = None,
    most_chunks: int | None = None,
    wrapping: Wrapping = "turns",
) -> Report:
    """Append chunks of 4 frames, and measure after every 10 chunks until the file ends or memory or context does.

    Args:
        sizes: of frames, before the model's own rounding to whole tokens: `native`; `224`, a square; `480p` and `720p`,
            that many rows with the video's aspect. Anything else is refused with ValueError.
        limit_bytes: counts as all there is, beside what was in use before; None: on a GPU all, on the CPU four fifths
            of what is free.
        most_chunks: where to stop at the latest; None: nowhere.

    Raises:
        MediaError: the first chunk cannot be decoded; damage after it is named in `failures`.
    """
    unknown = [size for size in sizes if size not in FRAME_SIZES]
    if unknown:
        raise ValueError(f"unknown size {', '.join(unknown)}; known: {', '.join(FRAME_SIZES)}")
    unbounded = replace(setting, min_pixels=1, max_pixels=_ANY_PIXELS)
    runs = [_Run(unbounded, size, limit_bytes, most_chunks, wrapping) for size in sizes]
    for run in runs:
        run.go()
    facts = setting.facts() | {
        "chunk_frames": CHUNK_FRAMES,
        "wrapping": wrapping,
        "memory_limit_bytes": limit_bytes,
        "min_pixels": None,
        "max_pixels": None,
    }
    steps = [row for run in runs for row in run.rows]
    return Report(
        "capacity",
        "Capacity: how much video fits",
        {name: value for name, value in facts.items() if value is not None},
        [
            Table("Where each size ended", [run.ended() for run in runs], _ENDED_NOTE),
            Table(f"Every {CHUNKS_PER_STEP} chunks of {CHUNK_FRAMES} frames", steps, _STEPS_NOTE),
        ],
        [
            Curves("Memory beside the model", "frames", "GB", {run.size: run.points("peak_bytes") for run in runs}),
            Curves("KV cache", "frames", "GB", {run.size: run.points("cache_bytes") for run in runs}),
            Curves("Pace of encoding", "frames", "frames/s", {r.size: r.points("frames_per_s") for r in runs}),
        ],
        failures=[
            f"{run.size}: {run.reason}" if run.rows else f"{run.size}: not even the first chunk fits ({run.reason})"
            for run in runs
            if run.is_cut_short or not run.rows
        ],
    )


_ENDED_NOTE = (
    "pixels: of a frame as the model sees it; seconds at 24 fps: of a film of which every frame is taken; GB per "
    "megapixel: of the KV cache, over all pixels of the frames as the model sees them; model: memory "
    "before the first chunk"
)
_STEPS_NOTE = (
    "padded frames: with the repetition that completes the last pair; encode: since the row before; peak: beside "
    "what was in use before the first chunk"
)


@dataclass
class _Run:
    """One frame size: a stream that grows until something ends it."""

    setting: Setting
    size: str
    limit_bytes: int | None
    most_chunks: int | None
    wrapping: Wrapping

    def __post_init__(self) -> None:
        self.rows: list[Row] = []
        self.reason, self.is_cut_short = "", False  # the latter by damage to the file
        self._meter = self.setting.meter
        self._chunks = self._frames = self._padded = 0
        self._encode_s = self._step_s = 0.0
        self._shape = (0, 0)  # of a frame as the model sees it

    def go(self) -> None:
        """Append until the end."""
        self._meter.begin()
        if self.limit_bytes is None and self.setting.model.device.type == "cpu":
            free = self._meter.free_bytes()
            self.limit_bytes = None if free is None else int(free * _USED_AT_MOST)
        setting = self.setting
        stream = VideoStreamingInference(
            setting.model, setting.processor, wrapping=self.wrapping, odd="pad", **setting.pixel_bounds
        )
        try:
            self.reason = self._grow(stream)
        except ContextTooLong as exc:
            self.reason = f"context full ({exc.limit:,} tokens)"
        except MediaError as exc:
            if not self._chunks:
                raise
            self.reason, self.is_cut_short = str(exc), True
        except Exception as exc:
            if not isinstance(exc, _NoMemory) and not is_out_of_memory(exc):
                raise
            self.reason = "out of memory"
        if self._chunks % CHUNKS_PER_STEP:
            self._measure(stream)

    def _grow(self, stream: VideoStreamingInference) -> str:
        video = self.setting.video
        while self.most_chunks is None or self._chunks < self.most_chunks:
            frames = [sized(frame, self.size) for frame in video.frames(self._frames, CHUNK_FRAMES)]
            if not frames:
                return "end of file"
            self._check_memory()
            when = video.timing(self._frames, len(frames))
            _, seconds = self._meter.timed(lambda f=frames, w=when: stream.append_video_chunk(f, **w))  # type: ignore[misc]
            grid = stream.runner.frames_per_grid
            self._shape = stream.runner.resize(frames[0]).shape[:2]
            self._chunks, self._frames = self._chunks + 1, self._frames + len(frames)
            self._padded += -(-len(frames) // grid) * grid
            self._encode_s, self._step_s = self._encode_s + seconds, self._step_s + seconds
            self.setting.told(self._frames, video.num_frames, f"{self.size}: {self._chunks} chunks")
            if self._chunks % CHUNKS_PER_STEP == 0:
                self._measure(stream)
        return "as many chunks as asked for"

    def _check_memory(self) -> None:
        if self.limit_bytes is not None and self._meter.peak_bytes() > self.limit_bytes:
            raise _NoMemory

    def _measure(self, stream: VideoStreamingInference) -> None:
        info = stream.get_cache_info()
        self.rows.append(
            {
                "size": self.size,
                "chunks": self._chunks,
                "real_frames": self._frames,
                "padded_frames": self._padded,
                "encode_s": self._step_s,
                "encode_in_all_s": self._encode_s,
                "frames_per_s": self._frames / self._encode_s,
                "cache_tokens": info["cache_seq_length"],
                "cache_bytes": info["cache_memory_bytes"],
                "peak_bytes": self._meter.peak_bytes(),
            }
        )
        self._step_s = 0.0

    def ended(self) -> Row:
        """The last state that was reached, and why there is none after it."""
        last = self.rows[-1] if self.rows else {}
        megapixels = self._padded * self._shape[0] * self._shape[1] / 1e6
        return {
            "size": self.size,
            "end": self.reason,
            "pixels": f"{self._shape[1]}x{self._shape[0]}" if self.rows else None,
            **{name: last.get(name) for name in ("chunks", "real_frames", "padded_frames")},
            "seconds_at_24_fps": self._frames / _FILM_FPS,
            "gb_per_megapixel": float(last["cache_bytes"] or 0) / 1e9 / megapixels if last else None,
            "model_bytes": self._meter.baseline_bytes,
        }

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return (frames, figure) of each row, bytes in GB."""
        scale = 1e9 if name.endswith("_bytes") else 1.0
        return [(float(row["real_frames"] or 0), float(row[name] or 0) / scale) for row in self.rows]


def sized(frame: np.ndarray, size: str) -> np.ndarray:
    """Return a frame, uint8 [height, width, 3], in one of `FRAME_SIZES`; bicubic."""
    if size == "native":
        return frame
    height, width = frame.shape[:2]
    rows = int(size.removesuffix("p"))
    columns = round(width * rows / height) if size.endswith("p") else rows
    return np.asarray(Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC))
