"""How long each row of the build's benchmark measures: as long as the targets need, or just to show that it runs."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.decode_files import Generated

DECODED = Generated("decode.mp4", "libx264", 300, 640, 360, 60)


@dataclass(frozen=True)
class Scale:
    """Times, counts and sizes of a run."""

    rounds: int = 3
    window_s: float = 15.0  # steady work that is measured of each contestant in each round
    warm_s: float = 1.0  # before that, counted from the moment when every lane has finished a unit
    tower_width: int = 384
    tower_layers: int = 12
    tower_frames: int = 8  # of a unit of the encoder-bound build
    video: Generated = DECODED  # of the decode-bound build
    video_frames: int = 32
    decoders: tuple[int, ...] = (1, 2)
    variants: int = 3  # of the build without work
    lanes: tuple[int, ...] = (1, 2, 4, 8)
    sleep_s: float = 0.05  # of the simulated encoder, for each unit
    memory_units: tuple[int, ...] = (200, 20_000)


QUICK = Scale(
    rounds=1,
    window_s=0.6,
    warm_s=0.0,
    tower_width=64,
    tower_layers=2,
    tower_frames=4,
    video=Generated("decode.mp4", "libx264", 40, 64, 48, 20),
    video_frames=4,
    decoders=(1,),
    variants=1,
    lanes=(1, 2),
    sleep_s=0.01,
    memory_units=(100,),
)
