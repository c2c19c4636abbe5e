"""Videos made for the decoding benchmark: long and short groups of pictures, several sizes and codecs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Generated:
    """One video to make: noise that drifts over a gradient, so that every frame differs and motion costs bits."""

    name: str
    codec: str
    frames: int
    width: int
    height: int
    group: int  # frames between keyframes
    b_frames: int = 2

    @property
    def title(self) -> str:
        """What its line is called."""
        return f"{self.codec} {self.width}x{self.height}, {self.frames} frames, a keyframe every {self.group}"


FILES = (
    Generated("long.mp4", "libx264", 1500, 640, 360, 250),
    Generated("short.mp4", "libx264", 1500, 640, 360, 12),
    Generated("sparse.mp4", "libx264", 6000, 320, 180, 25),
    Generated("no_b.mkv", "libx264", 1500, 640, 360, 250, b_frames=0),
    Generated("intra.mp4", "libx264", 900, 640, 360, 1),
    Generated("tiny.mp4", "libx264", 1500, 64, 48, 30),
    Generated("hd.mp4", "libx264", 400, 1280, 720, 60),
    Generated("full_hd.mp4", "libx264", 200, 1920, 1080, 60),
    Generated("hevc.mp4", "libx265", 300, 640, 360, 60),
    Generated("mpeg4.avi", "mpeg4", 600, 640, 360, 12, b_frames=0),
    Generated("vp8.webm", "libvpx", 300, 320, 180, 60),
)
QUICK_FILES = (
    Generated("long.mp4", "libx264", 150, 64, 48, 250),
    Generated("short.mp4", "libx264", 150, 64, 48, 12),
)


def generate(folder: Path, file: Generated) -> Path:
    """Write the video into `folder` and return its path. Equal calls draw equal pictures."""
    path = folder / file.name
    noise = np.random.default_rng(0).integers(0, 60, (file.height, file.width * 2, 3), dtype=np.uint8)
    columns = np.linspace(0, 190, file.width, dtype=np.uint8)[None, :, None]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(file.codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = file.width, file.height, "yuv420p"
        stream.options = _options(file)
        for index in range(file.frames):
            shift = index * 3 % file.width
            drawn = np.ascontiguousarray(noise[:, shift : shift + file.width] + columns)
            for packet in stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return path


def _options(file: Generated) -> dict[str, str]:
    group = str(file.group)
    if file.codec == "libx264":
        return {"g": group, "bf": str(file.b_frames), "preset": "ultrafast" if file.height > 400 else "veryfast"}
    if file.codec == "libx265":
        parameters = f"log-level=none:open-gop=0:keyint={group}:bframes={file.b_frames}"
        return {"x265-params": parameters, "preset": "ultrafast"}
    return {"g": group, "deadline": "realtime", "cpu-used": "8"} if file.codec.startswith("libvpx") else {"g": group}
