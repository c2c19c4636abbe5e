"""Decoded pictures into RGB, bit for bit as decord 0.6 (ffmpeg 4) does it."""

from __future__ import annotations

from typing import Any

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter

# ffmpeg converts these without scaling, so no filter is needed to have decord's bits. Odd heights are scaled.
UNSCALED_FORMATS = frozenset({"yuv420p", "yuvj420p"})
# No row of colours lies between two rows of these, so neither is there anything to site.
FULL_COLOUR_FORMATS = frozenset({"yuv444p", "rgb24", "bgr24", "bgra", "rgba", "bgr0", "rgb0"})
# Several threads per picture would take the cores of other decoders. PyAV 17 uses one and has no such option.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 18 else {}


class RgbConverter:
    """Turns decoded pictures into RGB: ffmpeg's scale filter, then the rotation that the file asks for.

    Sizes and formats may change from picture to picture; each keeps its own size.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._graph: Any = None
        self._made_for: tuple[object, ...] = ()

    def __call__(self, frame: Any) -> np.ndarray:
        """Convert one picture to uint8 [h, w, 3] RGB, upright."""
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise; other angles are left alone by decord too
        if not quarter_turns and converts_directly(frame.format.name, frame.height):
            plain: np.ndarray = self._reformatter.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray()
            return plain
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, quarter_turns)
        if layout != self._made_for:
            self._graph = _graph(frame, quarter_turns)
            self._made_for = layout
        pts, frame.pts = frame.pts, None  # the graph may be fed after a seek; times that run backwards are no use to it
        self._graph.push(frame)
        frame.pts = pts
        rgb: np.ndarray = self._graph.pull().to_ndarray()
        return rgb


def converts_directly(pixel_format: str, height: int) -> bool:
    """Tell whether such pictures become the same RGB in all versions of ffmpeg, with no filter to set up."""
    return pixel_format in FULL_COLOUR_FORMATS or (pixel_format in UNSCALED_FORMATS and height % 2 == 0)


_TURNS = {1: [("transpose", "cclock")], 2: [("hflip", ""), ("vflip", "")], 3: [("transpose", "clock")]}


def _graph(frame: Any, quarter_turns: int) -> Any:
    """Build decord's filters: bilinear, and chroma rows sited on the lower luma row of each pair.

    `reformat` of PyAV goes another way for formats without a direct way (10 bits, odd heights) and differs by
    up to 180 of 255 at colour edges.
    """
    options = {"w": frame.width, "h": frame.height, "flags": "bilinear"}
    chroma = frame.format.components[1:2]
    if chroma and frame.format.is_planar and 0 < frame.format.chroma_height(frame.height) < frame.height:
        options["in_v_chr_pos"] = 256
    scale = ("scale", ":".join(f"{key}={value}" for key, value in options.items()))
    graph = av.filter.Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or 1)
    for name, arguments in (scale, ("format", "rgb24"), *_TURNS.get(quarter_turns, []), ("buffersink", "")):
        following = graph.add(name, arguments) if arguments else graph.add(name)
        last.link_to(following)
        last = following
    graph.configure()
    return graph
