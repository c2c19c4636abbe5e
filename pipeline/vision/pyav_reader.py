"""Frames through PyAV, bit-equal to decord's where decord works, for the files and machines where it does not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.survey import INDEXED_CONTAINERS, Survey, one_line, open_container, video_stream


class PyavReader:
    """Frames of one video, by index. Not for use from several threads."""

    def __init__(self, path: Path, survey: Survey) -> None:
        """Open `path`.

        Raises:
            MediaError: PyAV cannot open the file.
        """
        self.decoder = f"PyAV {av.__version__}"
        self.num_frames = survey.num_frames
        self.average_fps = survey.average_fps
        self._path = path
        self._survey = survey
        self._can_seek = survey.has_times and survey.container in INDEXED_CONTAINERS
        self._index_of = {frame.pts: i for i, frame in enumerate(survey.frames)} if survey.has_times else {}
        self._to_rgb = RgbConverter()
        self._next: int  # the index from which on frames are still to come
        self._decoded: Iterator[Any]
        self._open()

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, in the order asked; repeats are allowed.

        Raises:
            MediaError: a frame cannot be decoded, or the file promises it and does not hold it; the message
                names it.
        """
        previous: tuple[int, np.ndarray] | None = None
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise MediaError(f"frame {index}: the video has {self.num_frames}")
            if previous is None or previous[0] != index:
                previous = (index, self._frame(index))
            yield previous[1]

    def _frame(self, index: int) -> np.ndarray:
        start = self._keyframe_before(index) if self._can_seek else 0
        if not start <= self._next <= index:
            self._restart(start)
        frame = self._advance(index)
        if frame is None and start > 0:
            # The seek landed behind the frame, or its pictures need what lies before the keyframe.
            self._restart(0)
            frame = self._advance(index)
        if frame is None:
            self._restart(0)
            raise MediaError(f"frame {index}: the file promises it and does not hold it")
        return self._to_rgb(frame)

    def _keyframe_before(self, index: int) -> int:
        keyframes = self._survey.keyframes
        place = bisect_right(keyframes, index)
        return keyframes[place - 1] if place else 0

    def _advance(self, index: int) -> Any | None:
        """Decode up to frame `index` and return it; None when the decoder passes it by."""
        try:
            for frame in self._decoded:
                place = self._index_of.get(frame.pts, -1) if self._index_of else self._next
                if place < self._next:
                    continue  # shown before the keyframe that was sought: not decodable from here, not asked for
                if frame.is_corrupt:
                    raise MediaError(f"frame {place}: damaged picture data")
                self._next = place + 1
                if place == index:
                    return frame
                if place > index:
                    return None
        except av.error.FFmpegError as exc:
            broken = self._next
            self._restart(0)
            raise MediaError(f"frame {broken}: {one_line(exc)}") from exc
        self._next = self.num_frames + 1  # the decoder is used up: any next frame needs a restart
        return None

    def _restart(self, keyframe: int) -> None:
        if keyframe == 0:
            self._container.close()
            self._open()
            return
        target = self._survey.frames[keyframe]
        # libavformat's index holds decoding times for MP4 and presentation times elsewhere.
        time = target.dts if self._survey.container == "mov" and target.dts is not None else target.pts
        self._container.seek(time, stream=self._stream, backward=True)
        self._decoded = self._container.decode(self._stream)
        self._next = keyframe

    def _open(self) -> None:
        self._container = open_container(self._path)
        self._stream = video_stream(self._container)
        self._decoded = self._container.decode(self._stream)
        self._next = 0


class RgbConverter:
    """Turns decoded pictures into RGB as decord does: ffmpeg's scale filter, then the rotation that the file asks for.

    Sizes and formats may change from picture to picture; each keeps its own size.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._made_for: tuple[object, ...] = ()

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one picture to uint8 [h, w, 3] RGB, upright."""
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if layout != self._made_for:
            self._graph = _scale_graph(frame)
            self._made_for = layout
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise; other angles are left alone by decord too
        frame.pts = None  # the graph may be fed after a seek; times that run backwards are of no use to it
        self._graph.push(frame)
        rgb: np.ndarray = self._graph.pull().to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb


def _scale_graph(frame: Any) -> Any:
    """Build the filters of decord 0.6 (ffmpeg 4): bilinear, and chroma rows sited on the lower luma row of each pair.

    `reformat` of PyAV goes another way for formats without a fast path (10 bits, odd heights) and differs by
    up to 180 of 255 at colour edges.
    """
    options = {"w": frame.width, "h": frame.height, "flags": "bilinear"}
    chroma = frame.format.components[1:2]
    if chroma and frame.format.is_planar and 0 < frame.format.chroma_height(frame.height) < frame.height:
        options["in_v_chr_pos"] = 256
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or 1
    )
    scale = graph.add("scale", ":".join(f"{key}={value}" for key, value in options.items()))
    rgb = graph.add("format", "rgb24")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(rgb)
    rgb.link_to(sink)
    graph.configure()
    return graph
