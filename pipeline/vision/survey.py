"""What a video file holds, read from its packets without decoding: the yardstick that every decoder is held to."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av

from pipeline.errors import MediaError

# Their packets carry one frame each with a time of its own, and their seeks land where they are asked to.
# Elsewhere (MPEG program and transport streams, raw streams, GIF) only decoding tells how many frames there
# are.
INDEXED_CONTAINERS = frozenset({"mov", "matroska", "avi"})


@dataclass(frozen=True)
class SurveyedFrame:
    """Where one frame sits in the file. Times are in the stream's time base; None: the file does not say."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    decode_order: int


@dataclass(frozen=True, eq=False)
class Survey:
    """Every frame that a video file promises, in play order."""

    container: str  # libavformat's first name: "mov", "matroska", "avi", "mpegts", ...
    codec: str
    frames: tuple[SurveyedFrame, ...]  # at least one
    average_fps: float  # frames per second, above 0
    time_base: Fraction  # seconds

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @cached_property
    def has_times(self) -> bool:
        """Tell whether each frame has a time that no other frame has."""
        times = {frame.pts for frame in self.frames}
        return None not in times and len(times) == len(self.frames)

    @cached_property
    def keyframes(self) -> tuple[int, ...]:
        """Return the indices of the keyframes, ascending."""
        return tuple(i for i, frame in enumerate(self.frames) if frame.is_keyframe)

    @cached_property
    def keyframes_keep_their_order(self) -> bool:
        """Tell whether each keyframe is decoded at the place where it is shown.

        False for open groups of pictures, x265's default: pictures that are decoded after a keyframe are
        shown before it.
        """
        return all(self.frames[i].decode_order == i for i in self.keyframes)

    def time_s(self, index: int) -> float:
        """Return when frame `index` is shown, in seconds from the first frame."""
        first, frame = self.frames[0].pts, self.frames[index].pts
        if not self.has_times or first is None or frame is None:
            return index / self.average_fps
        return float((frame - first) * self.time_base)


def open_container(path: Path) -> Any:
    """Open a media file with PyAV.

    Raises:
        MediaError: PyAV cannot open it. The message is the reason alone, in one line.
    """
    try:
        return av.open(os.fspath(path))
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        raise MediaError(one_line(exc)) from exc


def video_stream(container: Any) -> Any:
    """Return the stream that ffmpeg, and so decord, would choose.

    Raises:
        MediaError: there is none, or it is the cover picture of an audio file, or PyAV lacks its decoder.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError("no video stream")
    if stream.disposition & av.stream.Disposition.attached_pic:
        raise MediaError("no video stream, only a cover picture")
    if stream.codec_context is None:
        raise MediaError("no decoder for the video stream")
    # One thread: many decoders share a machine, and frames come out with the packet that holds them.
    stream.codec_context.thread_count = 1
    return stream


def survey_video(path: Path) -> Survey:
    """Read a video file's packets once, front to back, and return what they promise.

    Raises:
        MediaError: the file cannot be read to its end, is cut short, or holds no frame. The message is the
            reason alone, in one line.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        name = container.format.name.split(",")[0]
        _check_not_cut_short(path, name, stream)
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        try:
            found = _packets(container, stream) if name in INDEXED_CONTAINERS else _decoded(container, stream)
        except av.error.FFmpegError as exc:
            raise MediaError(one_line(exc)) from exc
        if not found:
            raise MediaError("its video stream holds no frames")
        if all(frame.pts is not None for frame in found):
            found.sort(key=lambda frame: frame.pts or 0)
        return Survey(name, stream.codec_context.name, tuple(found), fps, Fraction(stream.time_base))


def promised_length(path: Path) -> tuple[int, float] | None:
    """Return how many frames the file's header promises, and their rate in frames per second; no packet is read.

    None when the header does not tell, or there is none. `survey_video` counts; this one only believes.
    """
    try:
        with open_container(path) as container:
            stream = video_stream(container)
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            if stream.frames > 0:
                return int(stream.frames), fps or 25.0
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            return (max(1, math.ceil(seconds * fps)), fps) if seconds > 0 and fps > 0 else None
    except (MediaError, av.error.FFmpegError):
        # The build will name this video; its length is unknown until then.
        return None


def one_line(reason: BaseException) -> str:
    """Return the useful part of a decoder's message: one line, without file names and C++ source positions."""
    if isinstance(reason, av.error.FFmpegError):
        return str(reason.strerror)
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    text = lines[0] if lines else type(reason).__name__
    while ".cc:" in text.split(": ", 1)[0]:
        text = text.split(": ", 1)[1] if ": " in text else type(reason).__name__
    return text[:200]


def _packets(container: Any, stream: Any) -> list[SurveyedFrame]:
    found: list[SurveyedFrame] = []
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise MediaError(f"frame {len(found)} (in file order) is cut short")
        # VP8 stores reference pictures that are never shown in packets of their own (RFC 6386, 9.1:
        # show_frame).
        if stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10:
            continue
        found.append(SurveyedFrame(packet.pts, packet.dts, packet.is_keyframe, len(found)))
    return found


def _decoded(container: Any, stream: Any) -> list[SurveyedFrame]:
    found: list[SurveyedFrame] = []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(f"the packet after frame {len(found) - 1} is damaged")
        for frame in packet.decode():
            found.append(SurveyedFrame(frame.pts, frame.dts, bool(frame.key_frame), len(found)))
    return found


def _check_not_cut_short(path: Path, container: str, stream: Any) -> None:
    """Raise `MediaError` when the file's own index or header promises more bytes than there are.

    ffmpeg reads such a file as a shorter video without an error. MPEG streams promise nothing, so nothing is
    checked.
    """
    size = path.stat().st_size
    promised = size
    if container == "mov":
        promised = max((entry.pos + entry.size for entry in stream.index_entries), default=size)
    elif container == "matroska":
        with path.open("rb") as file:
            promised = matroska_end(file.read(4096)) or size
    if promised > size:
        raise MediaError(f"cut short: its index promises {promised} bytes, the file has {size}")


def matroska_end(head: bytes) -> int | None:
    """Return the offset where a Matroska file's segment ends, from its first bytes; None if it does not say.

    Source: RFC 8794 (EBML), sections 4 to 6: variable-length identifiers and sizes, all ones for "unknown".
    """
    position = 0
    for expected_id in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[position : position + 4] != expected_id or len(head) < position + 12:
            return None
        first = head[position + 4]
        width = 9 - first.bit_length()
        if width > 8:
            return None
        raw = int.from_bytes(head[position + 4 : position + 4 + width], "big")
        length = raw & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:
            return None
        position += 4 + width + length
    return position
