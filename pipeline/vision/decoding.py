"""From files to the model's pixels: whole videos, several clips of one file at once, and single frames."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.encoders.base import VideoPreprocess
from pipeline.errors import MediaError
from pipeline.vision.cuts import Cut, frames_of
from pipeline.vision.open_video import OpenVideo, RecentVideos, VideoReader
from pipeline.vision.sampling import PartialFrames, SamplingRule
from pipeline.vision.survey import Survey


@dataclass(frozen=True)
class Partial:
    """What a damaged file still gave."""

    asked: int  # frames that were sampled
    got: int  # of these, frames that were decoded: at least one
    error: str  # why the file is not whole


@dataclass(frozen=True, eq=False)
class DecodedVideo:
    """The sampled frames of one video, resized and cropped for the model."""

    pixels: np.ndarray  # uint8 [n, height, width, 3] RGB
    frame_indices: tuple[int, ...]  # of each row, in the whole video; ascending, repeats possible
    num_frames: int  # of the whole video
    decoder: str  # name and version
    partial: Partial | None = None  # None: every sampled frame is there


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
    cut: Cut | None = None,
    fps: float | None = None,
    partial_frames: PartialFrames = "refuse",
) -> DecodedVideo:
    """Decode the frames of one video or clip: `decode_cuts` with one cut.

    Raises:
        MediaError: the file is missing, holds no video, is cut short or damaged where it is needed, or the
            clip holds no frame. One line: the file's name, and each decoder's reason.
        ValueError: `nframe` is below 1.
    """
    (decoded,) = decode_cuts(
        path,
        [cut or Cut()],
        sampling=sampling,
        nframe=nframe,
        preprocess=preprocess,
        fps=fps,
        partial_frames=partial_frames,
    )
    if isinstance(decoded, MediaError):
        raise decoded
    return decoded


def decode_cuts(
    path: Path,
    cuts: Sequence[Cut],
    *,
    sampling: SamplingRule,
    nframe: int,
    preprocess: VideoPreprocess,
    fps: float | None = None,
    partial_frames: PartialFrames = "refuse",
) -> list[DecodedVideo | MediaError]:
    """Decode several clips of one file (or folder of numbered images), which is opened once, each frame once.

    `sampling` sees a clip's frames alone. Each frame goes through `preprocess` at once, so that one full-size
    frame is held at a time. What a cut gets is what it would get alone, the decoder included: a frame that only
    another cut needs cannot spoil it. A file's own rate is used where it has one; `fps` is a folder's, in
    images per second.

    With `partial_frames="allow"` a cut that would fail gets those of its sampled frames that the file still
    holds, and says so in `partial`; it fails only if there is none.

    Returns:
        For each cut, in order: its frames, or why it has none.

    Raises:
        ValueError: `nframe` is below 1.
    """
    path = Path(path)
    results: list[DecodedVideo | MediaError]
    request = _Request(path, sampling, nframe, preprocess)
    try:
        video = OpenVideo(path, fps=fps)
    except MediaError as exc:
        results = [MediaError(str(exc)) for _ in cuts]
    else:
        results = request.of_all(video, cuts)
    if partial_frames == "allow" and any(isinstance(result, MediaError) for result in results):
        try:
            damaged = OpenVideo(path, fps=fps, go_on=True)
        except MediaError:
            return results
        for place, result in enumerate(results):
            if isinstance(result, MediaError):
                results[place] = request.of_what_is_left(damaged, cuts[place], result)
    return results


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


# One robot episode has a handful of cameras, each in a file of its own.
_OPEN_VIDEOS = RecentVideos(capacity=4)


@dataclass(frozen=True, eq=False)
class _Request:
    """What is asked of every cut of one file."""

    path: Path
    sampling: SamplingRule
    nframe: int
    preprocess: VideoPreprocess

    def of_all(self, video: OpenVideo, cuts: Sequence[Cut]) -> list[DecodedVideo | MediaError]:
        """Decode all cuts in one pass; each alone if that fails, for the others must not share one cut's damage."""
        chosen = [self._chosen(cut, video.survey) for cut in cuts]
        sound = [indices for indices in chosen if not isinstance(indices, MediaError)]
        if not sound:
            return [indices for indices in chosen if isinstance(indices, MediaError)]
        try:
            if len(sound) > 1:
                arrays, decoder = video.by_first_reader(lambda reader: self._pixels(reader, sound))
            else:
                arrays, decoder = video.first_that_succeeds(lambda reader: self._pixels(reader, sound))
        except MediaError as exc:
            if len(cuts) > 1:
                return [self.of_all(video, [cut])[0] for cut in cuts]
            return [exc]
        left = iter(arrays)
        count = video.survey.num_frames
        return [
            indices if isinstance(indices, MediaError) else DecodedVideo(next(left), tuple(indices), count, decoder)
            for indices in chosen
        ]

    def of_what_is_left(self, video: OpenVideo, cut: Cut, error: MediaError) -> DecodedVideo | MediaError:
        """Decode what a damaged file still holds of one cut; `error` if that is nothing."""
        indices = self._chosen(cut, video.survey)
        if isinstance(indices, MediaError):
            return error
        found, decoder = {}, ""
        reasons = [video.survey.damage] if video.survey.damage else []
        for index, frame, decoder in video.held(sorted(set(indices)), reasons):  # noqa: B007 - one gives them all
            found[index] = self.preprocess(frame)
        if not found:
            return error
        kept = tuple(index for index in indices if index in found)
        pixels = np.stack([found[index] for index in kept])
        partial = Partial(len(indices), len(kept), reasons[0]) if reasons else None
        return DecodedVideo(pixels, kept, video.survey.num_frames, decoder, partial)

    def _chosen(self, cut: Cut, survey: Survey) -> list[int] | MediaError:
        try:
            clip = frames_of(cut, survey)
        except MediaError as exc:
            return MediaError(f"{self.path.name}: {exc}")
        if self.sampling.rate_hz is not None and math.isnan(survey.average_fps):
            return MediaError(f"{self.path.name}: {self.sampling.name} needs the frame rate of a folder of images")
        return [clip[i] for i in self.sampling.indices(len(clip), count=self.nframe, fps=survey.average_fps)]

    def _pixels(self, reader: VideoReader, chosen: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Fill one array per cut; a frame that several rows need is decoded and preprocessed once."""
        height, width = self.preprocess.height, self.preprocess.width
        arrays = [np.empty((len(indices), height, width, 3), dtype=np.uint8) for indices in chosen]
        rows = defaultdict(list)
        for array, indices in zip(arrays, chosen, strict=True):
            for row, index in enumerate(indices):
                rows[index].append(array[row])
        union = sorted(rows)
        for index, frame in zip(union, reader.frames(union), strict=True):
            pixels = self.preprocess(frame)
            for row in rows[index]:
                row[...] = pixels
        return arrays
