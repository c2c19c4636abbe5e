"""Frames through torchcodec, where it is installed: held to the readers' contract and measured, used by no build.

Its pixels are not decord's everywhere, and whether it is installed must not choose a feature's bytes. Those of damaged
pictures may depend on what was decoded before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import MediaError
from pipeline.vision.media_file import one_line
from pipeline.vision.survey import Survey


class TorchcodecReader:
    """Frames of one video, by index. Not for use from several threads."""

    def __init__(self, path: Path, survey: Survey) -> None:
        """Open `path`.

        Raises:
            MediaError: torchcodec or its FFmpeg is not installed, or it cannot open the file or counts other
                frames.
        """
        try:
            import torchcodec
            from torchcodec.decoders import VideoDecoder

            self._decoder = VideoDecoder(os.fspath(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        # It reports a missing FFmpeg and a damaged file alike.
        except (ImportError, OSError, RuntimeError, ValueError) as exc:
            raise MediaError(f"not usable here ({one_line(exc)})") from exc
        self.decoder = f"torchcodec {torchcodec.__version__}"
        self.num_frames = survey.num_frames
        self.average_fps = survey.average_fps
        if len(self._decoder) != survey.num_frames:
            raise MediaError(f"it counts {len(self._decoder)} frames where the file holds {survey.num_frames}")

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as uint8 [h, w, 3] RGB, in the order asked; repeats are allowed.

        Raises:
            MediaError: a frame cannot be decoded; the message names it.
        """
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise MediaError(f"frame {index}: the video has {self.num_frames}")
            try:
                frame: np.ndarray = self._decoder.get_frame_at(index).data.numpy()
            except (RuntimeError, ValueError, IndexError) as exc:
                raise MediaError(f"frame {index}: {one_line(exc)}") from exc
            yield frame
