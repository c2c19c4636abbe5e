"""One video or one frame, from file to pixels: decord where it is exact, else PyAV, never both in one video."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pipeline.encoders.base import VideoPreprocess
from pipeline.errors import MediaError
from pipeline.vision.decord_reader import DecordReader
from pipeline.vision.pyav_reader import PyavReader
from pipeline.vision.sampling import SamplingRule
from pipeline.vision.survey import Survey, survey_video

T = TypeVar("T")


class VideoReader(Protocol):
    """Frames of one open video, by index, through one decoder."""

    decoder: str  # name and version
    num_frames: int
    average_fps: float

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, upright, in the order asked; repeats are allowed.

        A frame's bits do not depend on which frames were asked for before. Sizes may change within a video.

        Raises:
            MediaError: a frame cannot be decoded; the message names it, without the file. The reader is of no
                further use then.
        """
        ...


READERS: tuple[Callable[[Path, Survey], VideoReader], ...] = (DecordReader, PyavReader)


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """The sampled frames of one video, resized and cropped for the model."""

    pixels: np.ndarray  # uint8 [n, height, width, 3] RGB
    frame_indices: tuple[int, ...]  # of each row, in the whole video; ascending, repeats possible
    num_frames: int  # of the whole video
    decoder: str  # name and version


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One frame at its full size."""

    pixels: np.ndarray  # uint8 [h, w, 3] RGB
    decoder: str  # name and version


def decode_video(
    path: Path,
    *,
    sampling: SamplingRule,
    nframe: int,
    preprocess: VideoPreprocess,
    start_s: float | None = None,
    end_s: float | None = None,
) -> DecodedVideo:
    """Decode the frames that `sampling` chooses, each through `preprocess`; one full-size frame is held at a time.

    A clip is the frames shown in [start_s, end_s], seconds from the video's first frame; `sampling` sees
    these alone. Which decoder is used depends on the file alone.

    Raises:
        MediaError: the file is missing, holds no video, is cut short or damaged where it is needed, or the
            clip holds no frame. One line: the file's name, and each decoder's reason.
        ValueError: `nframe` is below 1.
    """
    path = Path(path)
    video = OpenVideo(path)
    clip = _frames_within(video.survey, path, start_s, end_s)
    chosen = sampling.indices(len(clip), count=nframe, fps=video.survey.average_fps)
    indices = [clip[i] for i in chosen]

    def read(reader: VideoReader) -> np.ndarray:
        pixels = np.empty((len(indices), preprocess.height, preprocess.width, 3), dtype=np.uint8)
        unique = sorted(set(indices))
        row = 0
        for index, frame in zip(unique, reader.frames(unique), strict=True):
            repeats = indices.count(index)
            pixels[row : row + repeats] = preprocess(frame)
            row += repeats
        return pixels

    pixels, decoder = video.first_that_succeeds(read)
    return DecodedVideo(pixels, tuple(indices), video.survey.num_frames, decoder)


def decode_frame(path: Path, frame_index: int) -> DecodedFrame:
    """Decode frame `frame_index` (play order, from 0) at its full size.

    Each process keeps its last few videos open, for several steps of an episode share one file.

    Raises:
        MediaError: as `decode_video`, or the video has no such frame.
    """
    path = Path(path)
    video = _OPEN_VIDEOS.get(path)
    if not 0 <= frame_index < video.survey.num_frames:
        raise MediaError(f"{path.name}: no frame {frame_index}, the video has {video.survey.num_frames}")
    pixels, decoder = video.first_that_succeeds(lambda reader: next(iter(reader.frames([frame_index]))))
    return DecodedFrame(pixels, decoder)


@dataclass(eq=False)
class OpenVideo:
    """One file, its survey, and the readers opened so far.

    Raises:
        MediaError: the file cannot be surveyed.
    """

    path: Path
    survey: Survey = field(init=False)
    _readers: dict[int, VideoReader] = field(default_factory=dict, init=False)
    _refusals: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise MediaError(f"{self.path.name}: no such file in {self.path.parent}")
        if not self.path.stat().st_size:
            raise MediaError(f"{self.path.name}: the file is empty")
        try:
            self.survey = survey_video(self.path)
        except MediaError as exc:
            raise MediaError(f"{self.path.name}: not decodable. PyAV: {exc}; decord: not asked") from exc

    def first_that_succeeds(self, read: Callable[[VideoReader], T]) -> tuple[T, str]:
        """Return `read`'s result with the first decoder that completes it, and that decoder.

        Every call starts at the first decoder again: what one unit's failure taught must not choose the
            decoder of the next unit.

        Raises:
            MediaError: none does.
        """
        reasons = []
        for place, name in enumerate(("decord", "PyAV")):
            try:
                reader = self._reader(place)
                return read(reader), reader.decoder
            except MediaError as exc:
                self._readers.pop(place, None)
                reasons.append(f"{name}: {exc}")
        raise MediaError(f"{self.path.name}: not decodable. {'; '.join(reasons)}")

    def _reader(self, place: int) -> VideoReader:
        if place in self._refusals:
            raise MediaError(self._refusals[place])
        if place not in self._readers:
            try:
                self._readers[place] = READERS[place](self.path, self.survey)
            except MediaError as exc:
                self._refusals[place] = str(exc)
                raise
        return self._readers[place]


class _RecentVideos:
    """The last few opened videos of this process, told apart by what is on disk rather than by name alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._videos: OrderedDict[tuple[str, int, int], OpenVideo] = OrderedDict()

    def get(self, path: Path) -> OpenVideo:
        try:
            status = os.stat(path)
        except OSError as exc:
            raise MediaError(f"{path.name}: no such file in {path.parent}") from exc
        key = (os.fspath(path), status.st_mtime_ns, status.st_size)
        video = self._videos.pop(key, None) or OpenVideo(path)
        self._videos[key] = video
        while len(self._videos) > self._capacity:
            self._videos.popitem(last=False)
        return video


# One robot episode has a handful of cameras, each in a file of its own.
_OPEN_VIDEOS = _RecentVideos(capacity=4)


def _frames_within(survey: Survey, path: Path, start_s: float | None, end_s: float | None) -> range:
    """Return the indices of the frames that are shown in [start_s, end_s]."""
    if start_s is None and end_s is None:
        return range(survey.num_frames)
    lower = -np.inf if start_s is None else start_s
    upper = np.inf if end_s is None else end_s
    inside = [i for i in range(survey.num_frames) if lower <= survey.time_s(i) <= upper]
    if not inside:
        last_s = survey.time_s(survey.num_frames - 1)
        raise MediaError(
            f"{path.name}: no frame between {start_s} s and {end_s} s; the last is shown at {last_s:.3f} s"
        )
    return range(inside[0], inside[-1] + 1)
