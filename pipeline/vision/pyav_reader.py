"""Frames through PyAV, bit-equal to decord's where decord works, seeking and skipping wherever that decodes less."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.media_file import MediaFile, one_line
from pipeline.vision.reading_plan import Run, can_seek, reading_plan
from pipeline.vision.rgb import RgbConverter
from pipeline.vision.survey import Survey
from pipeline.vision.unreferenced import unreferenced_test

USED_UP = -1  # the decoder has nothing to give before a seek


class _NotFound(Exception):
    """A frame did not come out, or was damaged, on the short way; the long way may still give it."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"frame {index}: {reason}")


class DamagedMedia(MediaError):
    """Wanted pictures, or such as they are built on, are damaged or missing: who gives them makes them up."""


class LayoutChanged(MediaError):
    """A picture's size or format is not the header's, where the caller asked for one layout throughout."""


class PyavReader:
    """Frames of one video, by index. Not for use from several threads."""

    def __init__(self, path: Path, survey: Survey, media: MediaFile | None = None, *, one_layout: bool = False) -> None:
        """Open `path`, or take over the open `media` of the survey.

        With `one_layout` a picture of another size or format than the header's is refused (`LayoutChanged`): decord
        scales such pictures, this reader does not.

        Raises:
            MediaError: PyAV cannot open the file.
        """
        self.decoder = f"PyAV {av.__version__}"
        self.num_frames = survey.num_frames
        self.average_fps = survey.average_fps
        self._path = path
        self._survey = survey
        self._index_of = {frame.pts: i for i, frame in enumerate(survey.frames)} if survey.has_times else {}
        self._to_rgb = RgbConverter()
        self._layout = (survey.width, survey.height, survey.pixel_format) if one_layout else None
        self._short_way = True  # seek and skip; given up for good once it did not give a frame
        self._next = USED_UP  # else the index from which on frames are still to come
        self._place = 0  # where the open run is
        self._ready: deque[Any] = deque()  # decoded, not yet looked at
        self._is_drained = False  # the decoder was emptied; only a seek revives it
        self._packets: Iterator[Any] = iter(())
        self._last: Any = None  # the picture that came last
        self._take(media or MediaFile.open(path))
        if media is None:
            self._begin()

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, in the order asked; repeats are allowed.

        Raises:
            DamagedMedia: a frame cannot be decoded, or the file promises it and does not hold it; the message
                names it.
            LayoutChanged: as the reader was asked to raise.
            MediaError: the video has no such frame, or the file cannot be opened again.
        """
        for ascending in _ascending_parts(indices):
            for index in ascending:
                if not 0 <= index < self.num_frames:
                    raise MediaError(f"frame {index}: the video has {self.num_frames}")
            unique = list(dict.fromkeys(ascending))
            for index, frame in zip(unique, self._in_order(unique), strict=True):
                for _ in range(ascending.count(index)):
                    yield frame

    def _in_order(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        done = 0
        if self._short_way:
            try:
                runs = reading_plan(self._survey, indices)
                for run in runs:
                    for frame in self._read(run, leave_after=run is not runs[-1]):
                        done += 1
                        yield frame
            except _NotFound:
                # The seek landed behind the frame, or its pictures need what lies before the keyframe.
                self._short_way = False
                self._next = USED_UP
        if done < len(indices):
            try:
                yield from self._read(Run(0, tuple(indices[done:])), leave_after=False)
            except _NotFound as exc:
                raise DamagedMedia(str(exc)) from exc

    def _read(self, run: Run, *, leave_after: bool) -> Iterator[np.ndarray]:
        """Yield the wanted frames of one run. With `leave_after` the decoder is emptied as soon as it has them all."""
        if not run.start <= self._next <= run.wanted[0]:
            self._start_at(run.start)
        self._place, self._next = self._next, USED_UP  # an abandoned run has skipped what a later one may want
        wanted = deque(run.wanted)
        for frame in self._decoded(run, leave_after):
            # Where a picture ends a call its memory must not be free for others any sooner: see `_renew`.
            self._last = frame
            at = self._index_of.get(frame.pts, -1) if self._index_of else self._place
            if at < self._place:
                continue  # shown before the keyframe that was sought: not decodable from here, not asked for
            if frame.is_corrupt:
                raise _NotFound(at, "damaged picture data")
            self._place = at + 1
            if at > wanted[0]:
                break
            if at == wanted[0]:
                wanted.popleft()
                if self._layout not in (None, (frame.width, frame.height, frame.format.name)):
                    raise LayoutChanged(f"frame {at}: its size or format is not the header's")
                if not wanted and not self._is_drained:
                    self._next = self._place
                yield self._to_rgb(frame)
                if not wanted:
                    return
        raise _NotFound(wanted[0], "the file promises it and does not hold it")

    def _decoded(self, run: Run, leave_after: bool) -> Iterator[Any]:
        """Yield what the decoder gives; pictures that are neither wanted nor needed by others are not decoded."""
        frames, last = self._survey.frames, run.wanted[-1]
        wanted = set(run.wanted)
        is_unreferenced = None
        if self._short_way and can_seek(self._survey) and last - run.start >= len(wanted):
            is_unreferenced = unreferenced_test(self._context.name, self._context.extradata)
        last_order = max(frames[index].decode_order for index in run.wanted)
        sent = -1
        while True:
            while self._ready:
                yield self._ready.popleft()
            packet = next(self._packets, None)
            if packet is None:
                return
            index = self._index_of.get(packet.pts, -1) if self._index_of and packet.size else -1
            if is_unreferenced and 0 <= index < last and index not in wanted and is_unreferenced(memoryview(packet)):
                continue
            behind = sent >= last_order
            sent = max(sent, frames[index].decode_order if index >= 0 else -1)
            if self._survey.codec == "vp8" and packet.is_keyframe:
                self._renew(packet)
            try:
                self._ready.extend(self._context.decode(packet))
            except av.error.FFmpegError as exc:
                if 0 <= index < run.start:
                    continue  # shown before the keyframe that was sought, and built on what was not read
                if not behind:
                    raise _NotFound(index if index >= 0 else self._place, one_line(exc)) from exc
                leave_after = True  # what follows the wanted frames is damaged, they are not
            if leave_after and sent >= last_order:
                self._packets, self._is_drained = iter(()), True
                self._ready.extend(self._context.decode(None))

    def _start_at(self, index: int) -> None:
        self._ready.clear()
        self._is_drained = False
        if self._media.decoded is not None:
            self._packets, self._next = iter(()), 0
            self._ready.extend(self._media.decoded)
        elif not (self._short_way and can_seek(self._survey) and self._seek(index)):
            if index:
                raise _NotFound(index, "no seek leads there")
            self._media.close()
            self._take(MediaFile.open(self._path))
            self._begin()

    def _take(self, media: MediaFile) -> None:
        self._media, self._context = media, media.stream.codec_context
        if _names_damage(self._survey):
            self._context.options = {"err_detect": "explode"}

    def _renew(self, packet: Any) -> None:
        """Begin a group of VP8 pictures with a new decoder, whose memory holds nothing of earlier groups.

        ffmpeg does not say that a VP8 picture is damaged, and leaves in it what its memory held. A turned video keeps
        its decoder, for a new one does not know that it is turned.
        """
        is_intra = not memoryview(packet)[0] & 1  # RFC 6386, 9.1; the container's word alone is not enough
        if is_intra and self._last is not None and not self._last.rotation:
            self._context = av.CodecContext.create(self._context.name, "r")
            self._context.thread_count = 1

    def _begin(self) -> None:
        self._packets, self._next = self._media.container.demux(self._media.stream), 0

    def _seek(self, index: int) -> bool:
        """Go to keyframe `index`; False where the file does not lead there."""
        target = self._survey.frames[index]
        if not target.is_keyframe or (index == 0 and target.decode_order):
            return False
        # libavformat's index holds decoding times for MP4 and presentation times elsewhere.
        time = target.dts if self._survey.container == "mov" and target.dts is not None else target.pts
        stream = self._media.stream
        try:
            self._media.container.seek(time, stream=stream, backward=True)
            self._context.flush_buffers()  # the container does so with its own decoder alone
            packets = self._media.container.demux(stream)
            for packet in packets:
                if packet.pts == target.pts:
                    self._packets, self._next = chain([packet], packets), index
                    return True
                place = self._index_of.get(packet.pts)
                if not packet.size or (place is not None and self._survey.frames[place].decode_order > target[3]):
                    return False
        except av.error.FFmpegError:
            # Some containers refuse to go to times that they themselves have told.
            pass
        return False


def _names_damage(survey: Survey) -> bool:
    """Tell whether the decoder is told to raise, and not to fill a damaged picture from what else it has decoded.

    Not where all frames are read in one way, nor for H.264 in open groups of pictures: after a seek ffmpeg
    complains of sound ones, too.
    """
    is_told = survey.codec == "hevc" or (survey.codec == "h264" and survey.keyframes_keep_their_order)
    return is_told and can_seek(survey)


def _ascending_parts(indices: Sequence[int]) -> Iterator[list[int]]:
    """Cut a sequence wherever it steps back."""
    part: list[int] = []
    for index in indices:
        if part and index < part[-1]:
            yield part
            part = []
        part.append(index)
    if part:
        yield part
