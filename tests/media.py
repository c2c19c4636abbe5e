"""Small videos and episodes made by the tests themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(
    path: Path,
    *,
    frames: int = 24,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    seed: int = 0,
    times_s: Sequence[float] | None = None,
) -> Path:
    """Write a video of smooth noise that changes with every frame; lossless enough that frames differ.

    8 frames per second, or each at its own of `times_s`, in whole milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(coarse):
            big = picture.repeat(8, axis=0).repeat(8, axis=1)
            frame = av.VideoFrame.from_ndarray(big, format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(times_s[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_new_episode(
    folder: Path, *, poses: int = 100, images: int = 12, views: tuple[str, ...] = ("left", "right")
) -> Path:
    """Write a new-format VLA episode: `poses` robot states at 100 Hz and timestamped JPEGs of each view."""
    rng = np.random.default_rng(len(folder.name))
    (folder).mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"robot_hz": 100, "sensor_hz": 650, "camera_views": list(views)}))
    np.savez(folder / "robot_states.npz", robot_states=rng.normal(size=(poses, 12)))
    for view in views:
        (folder / "images" / view).mkdir(parents=True)
        for number in range(images):
            stamp = 1762725445.0 + number * 0.1
            picture = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "images" / view / f"{stamp:.3f}.jpg")
    return folder


def scramble(path: Path) -> Path:
    """Write bytes that no decoder opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(7).integers(0, 255, 4096, dtype=np.uint8).tobytes())
    return path
