"""Small media files for tests, written with PyAV."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np


class Thumbnail:
    """A preprocess that takes every fourth pixel of the frame's top left 32 x 32."""

    height = 8
    width = 8

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        return frame[:32:4, :32:4]


def write_video(
    path: Path,
    *,
    frames: int = 12,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    rate: int = 25,
) -> Path:
    """Write a video in which every frame differs from every other."""

    def write() -> None:
        with av.open(str(path), "w", format=container) as output:
            stream = output.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.options = options or {}
            if codec.startswith("mpeg"):
                stream.bit_rate = 4_000_000  # the default is so low that whole frames are skipped
            for index in range(frames):
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24")):
                    output.mux(packet)
            for packet in stream.encode(None):
                output.mux(packet)

    # As jobs/sample_input.py: root's AV1 encoder makes the thread that calls it a real-time one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result()
    return path


def picture(index: int, width: int, height: int) -> np.ndarray:
    """Return a smooth picture with a bright bar whose place tells the index."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([columns * 160 // width, rows * 160 // height, np.full_like(rows, 20 + index * 7 % 160)], axis=-1)
    start = index * 5 % max(width - 4, 1)
    base[:, start : start + 4] = 250
    return base.astype(np.uint8)


def write_tone(path: Path) -> Path:
    """Write a file with sound and no picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        for start in range(0, 8192, 1024):
            wave = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return path
