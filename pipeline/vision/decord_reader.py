"""Frames through decord, the decoder that LongVA and the evaluation harnesses use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.media_file import one_line
from pipeline.vision.survey import INDEXED_CONTAINERS, Survey

# Once the last packet is sent, decord polls its decoding thread at most this often, roughly 50 µs each, and then fails.
# A good short video needs hundreds of polls on an idle machine, so a small number would let the machine's load choose
# the decoder; this one waits about ten seconds, and still ends on a file that promises a frame it does not hold.
EOF_POLLS = 200_000


class DecordReader:
    """Frames of one video, by index. Not for use from several threads."""

    def __init__(self, path: Path, survey: Survey) -> None:
        """Open `path`.

        Raises:
            MediaError: decord is not installed, cannot open the file, or would give other frames than it was
                asked for.
        """
        _refuse_what_decord_gets_wrong(survey)
        try:
            os.environ.setdefault("DECORD_EOF_RETRY_MAX", str(EOF_POLLS))
            import decord
        except (ImportError, OSError) as exc:
            raise MediaError(f"not usable here ({one_line(exc)})") from exc
        decord.logging.set_level(decord.logging.QUIET)
        self.decoder = f"decord {decord.__version__}"
        self.num_frames = survey.num_frames
        self.average_fps = survey.average_fps
        self._errors = (decord.DECORDError, RuntimeError, IndexError, StopIteration)
        try:
            self._reader = decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
        except self._errors as exc:
            raise MediaError(one_line(exc)) from exc
        if len(self._reader) != survey.num_frames:
            raise MediaError(f"it counts {len(self._reader)} frames where the file holds {survey.num_frames}")

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, in the order asked; repeats are allowed.

        Raises:
            MediaError: a frame cannot be decoded; the message names it.
        """
        for index in indices:
            try:
                frame = self._reader[index].asnumpy()
            except self._errors as exc:
                raise MediaError(f"frame {index}: {one_line(exc)}") from exc
            # Below about 16 pixels of width decord returns its row padding as further channels.
            if frame.ndim != 3 or frame.shape[2] != 3:
                raise MediaError(f"frame {index}: decord returned the shape {frame.shape}")
            yield frame


def _refuse_what_decord_gets_wrong(survey: Survey) -> None:
    """Raise `MediaError` for files in which decord 0.6 answers a seek with another frame, without an error.

    It takes a keyframe's place in the file for its place in the play order, and trusts seeks in streams
    without an index: asked for frame 5 of an open-GOP H.265 file, it returned frame 6.
    """
    if survey.container not in INDEXED_CONTAINERS:
        raise MediaError(f"not asked, it cannot seek exactly in {survey.container}")
    if not survey.has_times:
        raise MediaError("not asked, frames have no times of their own")
    if not survey.keyframes_keep_their_order:
        raise MediaError("not asked, it seeks to wrong frames in open groups of pictures")
