"""Row `build-on-gpu`: a whole build on Ray with one GPU, against the bare model loop on that GPU."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.build.device_stage import LEAST_SHARE, Size
from benchmarks.build.encoder_bound import compare, row
from benchmarks.build.encoders import clip_spec
from benchmarks.build.scale import Scale
from benchmarks.store.report import Row


def measure(size: Size, device: str, folder: Path) -> list[Row]:
    """The row. All cores but two decode, from the start: their number would otherwise grow during the measurement."""
    decoders = max(1, (os.cpu_count() or 1) - 2)
    scale = Scale(rounds=size.rounds, window_s=size.window_s, warm_s=size.window_s / 5)
    spec = clip_spec(size.vision, dtype=size.dtype)
    place = folder / "on ray"
    place.mkdir()
    compared = compare(spec, place, scale, nframe=size.frames, device=device, decoders=decoders)
    what = f"{spec.architecture['hidden_size']} wide, {size.dtype}"
    return [row(compared, "build-on-gpu", what, least_share=LEAST_SHARE, decoders=decoders)]
