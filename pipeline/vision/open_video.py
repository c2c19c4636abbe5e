"""One open file and its readers: which decoder is asked first, and who is asked when it fails."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.decord_reader import DecordReader
from pipeline.vision.image_folder import ImageFolderReader, survey_images
from pipeline.vision.media_file import MediaFile
from pipeline.vision.pyav_reader import DamagedMedia, LayoutChanged, PyavReader
from pipeline.vision.reading_plan import keyframe_before
from pipeline.vision.rgb import converts_directly
from pipeline.vision.survey import Survey, survey_media

T = TypeVar("T")

# Their decoding is exact by their standards (MPEG-4's is by our comparisons), so all versions of ffmpeg agree on it.
EXACT_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4"})


class VideoReader(Protocol):
    """Frames of one open video, by index, through one decoder."""

    decoder: str  # name and version
    num_frames: int
    average_fps: float

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, upright, in the order asked; repeats are allowed.

        A frame's bits do not depend on which frames were asked for before; of damaged pictures PyAV alone promises
        it, but for the exceptions among README's limits. Sizes may change within a video.

        Raises:
            MediaError: a frame cannot be decoded; the message names it, without the file. The reader is of no
                further use then.
        """
        ...


READERS: dict[str, Callable[..., VideoReader]] = {
    "PyAV": PyavReader,
    "decord": DecordReader,
    "pillow": ImageFolderReader,
}


def readers_in_order(survey: Survey) -> tuple[str, ...]:
    """Return who is asked for a file's frames, in order.

    decord's pixels are what other caches and the evaluation harnesses have. PyAV gives the same bits sooner in
    most files, and goes first there; elsewhere (10 bits, odd heights, MJPEG, MPEG-1 and 2) decord does.
    """
    if survey.container == "images":
        return ("pillow",)
    is_same = survey.codec in EXACT_CODECS and converts_directly(survey.pixel_format, survey.height)
    return ("PyAV", "decord") if is_same else ("decord", "PyAV")


@dataclass(eq=False)
class OpenVideo:
    """One file or folder of images, its survey, and the readers opened so far.

    Raises:
        MediaError: the file cannot be surveyed.
    """

    path: Path
    fps: float | None = None  # images per second, of a folder; a file tells its own
    go_on: bool = False  # survey a damaged file as far as it can be read
    survey: Survey = field(init=False)
    _media: MediaFile | None = field(default=None, init=False)
    _readers: dict[str, VideoReader] = field(default_factory=dict, init=False)
    _refusals: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            try:
                self.survey = survey_images(self.path, self.fps)
            except (MediaError, OSError) as exc:
                raise MediaError(f"{self.path.name}: {exc}") from exc
            return
        if not self.path.is_file():
            raise MediaError(f"{self.path.name}: no such file in {self.path.parent}")
        if not self.path.stat().st_size:
            raise MediaError(f"{self.path.name}: the file is empty")
        try:
            self._media = MediaFile.open(self.path)
            self.survey = survey_media(self._media, go_on=self.go_on)
        except MediaError as exc:
            raise MediaError(f"{self.path.name}: not decodable. PyAV: {exc}; decord: not asked") from exc

    def first_that_succeeds(self, read: Callable[[VideoReader], T]) -> tuple[T, str]:
        """Return `read`'s result with the first decoder that completes it, and that decoder.

        Where PyAV names damaged pictures nobody else is asked. Every call starts at the first decoder again: what
            one unit's failure taught must not choose the decoder of the next unit.

        Raises:
            MediaError: none does.
        """
        reasons: dict[str, str] = {}
        order = list(readers_in_order(self.survey))
        for place, name in enumerate(order):
            try:
                reader = self._reader(name, one_layout=place == 0)
                return read(reader), reader.decoder
            except MediaError as exc:
                self._readers.pop(name, None)
                reasons[name] = str(exc)
                if isinstance(exc, DamagedMedia):
                    break  # decord would conceal the damage, and not twice alike
                if isinstance(exc, LayoutChanged):
                    order.append(name)  # decord may be missing, and would only have scaled the frames
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise MediaError(f"{self.path.name}: not decodable. {listed}")

    def by_first_reader(self, read: Callable[[VideoReader], T]) -> tuple[T, str]:
        """Return `read`'s result with the first decoder that opens the file, and that decoder.

        Raises:
            MediaError: none opens it, or that one fails.
        """
        for place, name in enumerate(readers_in_order(self.survey)):
            try:
                reader = self._reader(name, one_layout=place == 0)
            except MediaError:
                continue  # refused for what the file is, whatever is asked of it
            try:
                return read(reader), reader.decoder
            except MediaError:
                self._readers.pop(name, None)
                raise
        raise MediaError(f"{self.path.name}: not decodable")

    def held(self, indices: Sequence[int], reasons: list[str]) -> Iterator[tuple[int, np.ndarray, str]]:
        """Yield index, frame and decoder of what a damaged file still holds of ascending `indices`, none repeated.

        What follows a damaged picture in its group of pictures is built on it, and counts as lost. Why frames are
        lost is added to `reasons`; equal files give equal ones, which decord's threads do not.
        """
        name = "pillow" if self.survey.container == "images" else "PyAV"
        for _, grouped in groupby(indices, key=lambda index: keyframe_before(self.survey, index)):
            group = list(grouped)
            try:
                reader = self._reader(name, one_layout=False)
                for index, frame in zip(group, reader.frames(group), strict=True):
                    yield index, frame, reader.decoder
            except MediaError as exc:
                reasons.append(str(exc))
                self._readers.pop(name, None)  # it is of no further use; the next group gets a new one

    def _reader(self, name: str, *, one_layout: bool) -> VideoReader:
        if name in self._refusals:
            raise MediaError(self._refusals[name])
        if name not in self._readers:
            try:
                if name == "PyAV":
                    media, self._media = self._media, None
                    self._readers[name] = READERS[name](self.path, self.survey, media, one_layout=one_layout)
                else:
                    self._readers[name] = READERS[name](self.path, self.survey)
            except MediaError as exc:
                self._refusals[name] = str(exc)
                raise
        return self._readers[name]


class RecentVideos:
    """The last few opened videos of this process, told apart by what is on disk rather than by name alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._videos: OrderedDict[tuple[str, int, int], OpenVideo] = OrderedDict()

    def __len__(self) -> int:
        return len(self._videos)

    def get(self, path: Path) -> OpenVideo:
        """Return the open video of that path, or open it.

        Raises:
            MediaError: the file is missing or cannot be surveyed.
        """
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
