"""Input for the demo, made from fixed seeds: videos in several codecs with scene cuts, and robot episodes."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 12

# The AV1 encoder prints its settings for every file unless told to report errors alone.
os.environ.setdefault("SVT_LOG", "1")


@dataclass(frozen=True)
class SampleInput:
    """Where the sample input lies."""

    videos: Path
    episodes: Path


@dataclass(frozen=True)
class _Clip:
    name: str
    codec: str
    frames: int
    width: int
    height: int
    options: tuple[tuple[str, str], ...] = ()


_CLIPS = (
    _Clip("city_h264.mp4", "libx264", 60, 320, 240),
    _Clip("harbour_hevc.mp4", "libx265", 48, 256, 192, (("x265-params", "log-level=none"),)),
    _Clip("forest_vp9.webm", "libvpx-vp9", 40, 240, 176),
    _Clip("market_mpeg4.avi", "mpeg4", 48, 320, 180),
    _Clip("desert_av1.mp4", "libsvtav1", 24, 192, 128),
    _Clip("blink_short.mp4", "libx264", 5, 160, 120),
)


def make_sample_input(folder: Path) -> SampleInput:
    """Write the sample input below `folder`: six videos, one broken file, four episodes. About a megabyte."""
    made = SampleInput(folder / "videos", folder / "episodes")
    made.videos.mkdir(parents=True)
    # The AV1 encoder gives the thread that calls it real-time priority where root does, and for good: processes that it
    # starts later would have it too, and nothing else would get a turn.
    with ThreadPoolExecutor(1) as pool:
        for seed, clip in enumerate(_CLIPS):
            pool.submit(_write_clip, made.videos / clip.name, clip, seed).result()
    whole = (made.videos / "city_h264.mp4").read_bytes()
    # Without its index, which an MP4 has at its end, no decoder knows where a frame begins.
    (made.videos / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    for number, name in enumerate(("recv_all_20251027_170308", "recv_all_20251028_091500")):
        _write_old_episode(made.episodes / "old_rig" / name, seed=number)
    for number, name in enumerate(("episode_20251030_025119", "episode_20251030_030204")):
        _write_new_episode(made.episodes / "needle_insertion" / name, seed=10 + number)
    return made


def _write_clip(path: Path, clip: _Clip, seed: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(clip.codec, rate=Fraction(FPS), options=dict(clip.options))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        # Threads cut the picture differently from machine to machine; the sample should not differ.
        stream.codec_context.thread_count = 1
        for picture in _scenes(clip.frames, clip.width, clip.height, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _scenes(frames: int, width: int, height: int, seed: int) -> Iterator[np.ndarray]:
    """Yield pictures, uint8 [height, width, 3]: a square moving over a gradient, with a scene cut every 12 frames."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.4, 1.0, width)[None, :, None] * np.ones((height, 1, 1))
    for number in range(frames):
        if number % FPS == 0:
            ground, square = rng.integers(40, 255, 3), rng.integers(0, 255, 3)
        picture = (ramp * ground).astype(np.uint8)
        side = height // 4
        left = (number * 7) % (width - side)
        top = (number * 3) % (height - side)
        picture[top : top + side, left : left + side] = square
        yield picture


def _write_old_episode(folder: Path, *, seed: int, rows: int = 32) -> None:
    rng = np.random.default_rng(seed)
    images: dict[str, list[str]] = {}
    for view in ("View1", "View2"):
        (folder / view).mkdir(parents=True)
        images[view] = []
        for row, picture in enumerate(_scenes(rows, 160, 120, seed + len(images))):
            Image.fromarray(picture).save(folder / view / f"{row:04d}.jpg")
            images[view].append(f"{view}/{row:04d}.jpg")
    data = {
        "action": rng.normal(size=(rows, 7)),
        "image": images,
        "instruction": "Insert the peg into the hole.",
        "sensor_data": None,
    }
    with (folder / "data.pkl").open("wb") as file:
        pickle.dump(data, file, protocol=4)
    np.savez(folder / "robot_states.npz", robot_states=rng.normal(size=(rows, 12)))


def _write_new_episode(folder: Path, *, seed: int, poses: int = 240) -> None:
    rng = np.random.default_rng(seed)
    start_s, views = 1762725445.0 + seed, ("left", "right")
    for view in views:
        (folder / "images" / view).mkdir(parents=True)
        for number, picture in enumerate(_scenes(24, 160, 120, seed + len(view))):
            stamp = start_s + number / 10
            Image.fromarray(picture).save(folder / "images" / view / f"ZED_41182735_{view}_{stamp:.3f}.jpg")
    metadata = {"robot_hz": 100, "sensor_hz": 650, "camera_views": list(views)}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    np.savez(folder / "robot_states.npz", robot_states=rng.normal(size=(poses, 12)))
    count = round(poses / 100 * 650)
    np.savez_compressed(
        folder / "sensor_data.npz",
        timestamps=start_s + np.arange(count) / 650,
        alines=rng.normal(size=(count, 8)).astype(np.float32).repeat(129, axis=1)[:, :1025],
        forces=rng.normal(size=count).astype(np.float32),
    )
