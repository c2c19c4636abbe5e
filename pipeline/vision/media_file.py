"""One media file opened through PyAV: its container, and the video stream that ffmpeg, and so decord, would choose."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from pipeline.errors import MediaError


@dataclass(eq=False)
class MediaFile:
    """An open container. Opening costs more than surveying a small file, so survey and reader share one."""

    path: Path
    container: Any
    stream: Any
    decoded: list[Any] | None = None  # every frame of the file, where somebody had to decode it and it was small

    @classmethod
    def open(cls, path: Path) -> MediaFile:
        """Open a media file and find its video.

        Raises:
            MediaError: PyAV cannot open it, or there is no video stream, or only the cover picture of an audio
                file, or PyAV lacks its decoder. The message is the reason alone, in one line.
        """
        try:
            container = av.open(os.fspath(path))
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            raise MediaError(one_line(exc)) from exc
        try:
            return cls(path, container, _video_stream(container))
        except MediaError:
            container.close()
            raise

    def close(self) -> None:
        """Close the file; frames already decoded stay valid."""
        self.container.close()

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def one_line(reason: BaseException) -> str:
    """Return the useful part of a decoder's message: one line, without file names and C++ source positions."""
    if isinstance(reason, av.error.FFmpegError):
        return str(reason.strerror)
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    text = lines[0] if lines else type(reason).__name__
    while ".cc:" in text.split(": ", 1)[0]:
        text = text.split(": ", 1)[1] if ": " in text else type(reason).__name__
    return text[:200]


def _video_stream(container: Any) -> Any:
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
