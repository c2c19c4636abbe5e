"""What a video file holds, read from its packets without decoding: the yardstick that every decoder is held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.media_file import MediaFile, one_line

# Their packets carry one frame each with a time of its own, and their seeks land where they are asked to.
# Elsewhere (MPEG program and transport streams, raw streams, GIF) only decoding tells how many frames there
# are.
INDEXED_CONTAINERS = frozenset({"mov", "matroska", "avi"})

# Of what a survey had to decode, this much is kept for the reader, so that small files are decoded once.
KEPT_BYTES = 32 << 20


class SurveyedFrame(NamedTuple):
    """Where one frame sits in the file. Times are in the stream's time base; None: the file does not say."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    decode_order: int
    nbytes: int = 0  # of its packet; 0 where the survey had to decode


@dataclass(frozen=True, eq=False)
class Survey:
    """Every frame that a video file promises, in play order."""

    container: str  # libavformat's first name: "mov", "matroska", "avi", "mpegts", ...; "images" for a folder
    codec: str
    frames: tuple[SurveyedFrame, ...]  # at least one
    average_fps: float  # frames per second, above 0; NaN where nobody told it
    time_base: Fraction  # seconds
    pixel_format: str = ""  # ffmpeg's name, as the header tells it
    width: int = 0  # pixels, as the header tells it, before any rotation
    height: int = 0
    zero_pts: int | None = None  # the time that bounds of clips count from; None: the first frame's
    damage: str = ""  # what is wrong with the file, where the survey was asked to go on

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

    @cached_property
    def packet_ends(self) -> tuple[int, ...]:
        """Return the bytes of all packets up to and with each one, in decode order."""
        sizes = [0] * len(self.frames)
        for frame in self.frames:
            sizes[frame.decode_order] = frame.nbytes
        return tuple(accumulate(sizes))

    @cached_property
    def times_s(self) -> np.ndarray:
        """Return when each frame is shown, in seconds from `zero_pts`: float64 [frames]."""
        if not self.has_times:
            return np.arange(self.num_frames) / self.average_fps
        zero = self.frames[0].pts if self.zero_pts is None else self.zero_pts
        times: np.ndarray = np.array([frame.pts - zero for frame in self.frames]) * float(self.time_base)  # type: ignore[operator]
        return times

    @cached_property
    def is_steady(self) -> bool:
        """Tell whether each frame is shown within half a frame of where a constant rate would show it."""
        even = self.times_s[0] + np.arange(self.num_frames) / self.average_fps
        return bool(np.all(np.abs(self.times_s - even) * self.average_fps < 0.5))


def survey_video(path: Path) -> Survey:
    """Read a video file's packets once, front to back, and return what they promise.

    Raises:
        MediaError: the file cannot be read to its end, is cut short, or holds no frame. The message is the
            reason alone, in one line.
    """
    with MediaFile.open(path) as media:
        return survey_media(media)


def survey_media(media: MediaFile, *, go_on: bool = False) -> Survey:
    """Read an open file's packets once, front to back; what had to be decoded is left in `media.decoded`.

    With `go_on` a file that is cut short or damaged is surveyed as far as it can be read, and `damage` says why.

    Raises:
        MediaError: as `survey_video`.
    """
    stream = media.stream
    name = media.container.format.name.split(",")[0]
    found: list[SurveyedFrame] = []
    collect = _collect_packets if name in INDEXED_CONTAINERS else _collect_decoded
    damage = ""
    for step in (lambda: _check_not_cut_short(media.path, name, stream), lambda: collect(media, found)):
        try:
            _translated(step)
        except MediaError as exc:
            if not go_on:
                raise
            damage = damage or str(exc)
    if not found:
        raise MediaError(damage or "its video stream holds no frames")
    if all(frame.pts is not None for frame in found):
        found.sort(key=lambda frame: frame.pts or 0)
    context = stream.codec_context
    return Survey(
        container=name,
        codec=context.name,
        frames=tuple(found),
        average_fps=float(stream.average_rate or stream.guessed_rate or 0) or 25.0,
        time_base=Fraction(stream.time_base),
        pixel_format=context.pix_fmt or "",
        width=context.width,
        height=context.height,
        damage=damage,
    )


def promised_length(path: Path) -> tuple[int, float] | None:
    """Return how many frames the file's header promises, and their rate in frames per second; no packet is read.

    None when the header does not tell, or there is none. `survey_video` counts; this one only believes.
    """
    try:
        with MediaFile.open(path) as media:
            stream, container = media.stream, media.container
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            if stream.frames > 0:
                return int(stream.frames), fps or 25.0
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            return (max(1, math.ceil(seconds * fps)), fps) if seconds > 0 and fps > 0 else None
    except (MediaError, av.error.FFmpegError):
        # The build will name this video; its length is unknown until then.
        return None


def _translated(step: Callable[[], None]) -> None:
    try:
        step()
    except av.error.FFmpegError as exc:
        raise MediaError(one_line(exc)) from exc


def _collect_packets(media: MediaFile, found: list[SurveyedFrame]) -> None:
    is_vp8 = media.stream.codec_context.name == "vp8"
    for packet in media.container.demux(media.stream):
        nbytes = packet.size
        if not nbytes or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise MediaError(f"frame {len(found)} (in file order) is cut short")
        # VP8 stores reference pictures that are never shown in packets of their own (RFC 6386, 9.1:
        # show_frame).
        if is_vp8 and not memoryview(packet)[0] & 0x10:
            continue
        found.append(SurveyedFrame(packet.pts, packet.dts, packet.is_keyframe, len(found), nbytes))


def _collect_decoded(media: MediaFile, found: list[SurveyedFrame]) -> None:
    kept: list[Any] | None = []
    kept_bytes = 0
    for packet in media.container.demux(media.stream):
        if packet.is_corrupt:
            raise MediaError(f"the packet after frame {len(found) - 1} is damaged")
        for frame in packet.decode():
            found.append(SurveyedFrame(frame.pts, frame.dts, bool(frame.key_frame), len(found)))
            kept_bytes += sum(plane.buffer_size for plane in frame.planes)
            if kept is not None and kept_bytes <= KEPT_BYTES:
                kept.append(frame)
            else:
                kept = None
    media.decoded = kept


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
