"""Row `encoder-bound`: a build whose encoder is what is slow, against the same model in a bare loop."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.build.bare import BARE, bare_pace
from benchmarks.build.encoders import small_clip
from benchmarks.build.pace import Pace, build_pace, cluster
from benchmarks.build.samples import OneVideo
from benchmarks.build.scale import Scale
from benchmarks.decode_files import Generated, generate
from benchmarks.store.report import Row, rate_lines
from benchmarks.store.timing import median
from cache_store import FeatureStore
from pipeline.decode_unit import DecodedUnit, decode_unit
from pipeline.encoders.base import VideoEncoderSpec
from pipeline.work_plan import BuildTask, plan_build

STEADY = "build on Ray, steady"
WHOLE = "build on Ray, from the first unit to the last"
LEAST_SHARE = 0.95
MANY = 100_000  # more videos than any window takes
# Decoding must cost next to nothing here: what is measured is the encoder's process.
CHEAP = Generated("cheap.mp4", "libx264", 32, 64, 48, 8)


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row. Both sides have one torch thread; the other core is the decoder's, Ray's and the driver's."""
    spec = small_clip(scale.tower_width, scale.tower_layers)
    compared = compare(spec, folder, scale, nframe=scale.tower_frames, cpus=1)
    what = f"{scale.tower_layers} layers deep and {scale.tower_width} wide, float32, one torch thread on both sides"
    return [row(compared, "encoder-bound", what, least_share=LEAST_SHARE, decoders=1)]


@dataclass
class Compared:
    """What the bare model and builds with it reached, in turns."""

    nframe: int
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # frames/s, one a round
    paces: list[Pace] = field(default_factory=list)


def compare(
    spec: VideoEncoderSpec,
    folder: Path,
    scale: Scale,
    *,
    nframe: int,
    device: str = "cpu",
    cpus: int | None = None,
    decoders: int | None = None,
) -> Compared:
    """Run the bare loop and a build of one lane in turns, over the frames of one video that is cheap to decode."""
    video = generate(folder, replace(CHEAP, frames=2 * nframe))
    pixels = decoded_pixels(spec, video, folder / "plan", nframe=nframe)
    encoder = spec.load(device)
    found = Compared(len(pixels))
    with cluster(cpus):
        for number in range(scale.rounds):
            found.rates[BARE].append(bare_pace(encoder, pixels, device, seconds=scale.window_s))
            pace = build_pace(
                OneVideo(video, MANY),
                spec,
                folder / f"store {number}",
                scale,
                decoders=decoders,
                nframe=nframe,
                device="cpu" if device == "cpu" else "gpu",
            )
            found.rates[STEADY].append(len(pixels) * pace.units_per_s)
            found.rates[WHOLE].append(len(pixels) * pace.whole_per_s)
            found.paces.append(pace)
            shutil.rmtree(folder / f"store {number}")
    return found


def row(compared: Compared, name: str, what: str, *, least_share: float, decoders: int) -> Row:
    """The row of a comparison; `what` describes the tower."""
    start_s = median([pace.start_s for pace in compared.paces])
    return Row(
        name,
        "encoder-bound build against the bare model loop",
        "frames/s",
        rate_lines(compared.rates, base=BARE, least_ratios={STEADY: least_share}),
        [
            f"A CLIP tower {what}; units of {compared.nframe} frames. The bare loop runs the model over one unit's "
            "decoded frames, which stay where they are: no decoding, no transport, no writing. The build has one lane; "
            f"it starts with {decoders} decoder(s).",
            f"From its start to its first finished unit a build took {start_s:.1f} s (processes, imports, model); "
            "that is in neither line, nor is the start of Ray.",
            stage_remark(compared.paces, compared.nframe),
        ],
    )


def stage_remark(paces: list[Pace], frames: int) -> str:
    """What the stages took, a frame, from the builds' own reports."""
    of_stage = {
        stage: median([getattr(pace.report.stage_seconds, stage) / pace.report.done for pace in paces]) / frames * 1e3
        for stage in ("decode", "encode", "write")
    }
    told = ", ".join(f"{stage} {taken_ms:.2f} ms" for stage, taken_ms in of_stage.items())
    return f"A frame's share of the stages, which overlap: {told}."


def decoded_pixels(spec: VideoEncoderSpec, video: Path, root: Path, *, nframe: int) -> np.ndarray:
    """The frames that a build's decoder hands to its encoder, uint8 [nframe, height, width, 3]."""
    with FeatureStore(root) as store:
        task = BuildTask(spec, str(store.root), None, nframe=nframe)
        unit = next(plan_build(OneVideo(video, 1), task, store, overwrite=False).units())
    decoded = decode_unit(unit, task)
    if not isinstance(decoded, DecodedUnit) or not isinstance(decoded.pixels, np.ndarray):
        raise RuntimeError(f"{video} cannot be decoded: {decoded}")
    return decoded.pixels
