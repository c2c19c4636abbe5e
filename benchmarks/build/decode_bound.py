"""Row `decode-bound`: a build whose decoders are what is slow, against the same decoding in as many bare processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.build.encoder_bound import MANY, stage_remark
from benchmarks.build.encoders import FirstPixelSpec
from benchmarks.build.pace import Pace, build_pace, cluster
from benchmarks.build.samples import OneVideo
from benchmarks.build.scale import Scale
from benchmarks.decode_files import generate
from benchmarks.store.report import Line, Row, rate_lines
from cache_store import FeatureStore
from pipeline.decode_unit import DecodedUnit, decode_unit
from pipeline.encoders.longva import OPENAI_336_PROCESSOR
from pipeline.vision.preprocessing import ClipLikePreprocess
from pipeline.work_plan import BuildTask, Unit, plan_build


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row: for each number of decoders the bare processes and the build, in turns."""
    spec = FirstPixelSpec(ClipLikePreprocess.from_config(OPENAI_336_PROCESSOR))
    source = OneVideo(generate(folder, scale.video), MANY)
    lines: list[Line] = []
    paces: list[Pace] = []
    with cluster():
        for count in scale.decoders:
            bare, ours = f"{count} bare decoding processes", f"build on Ray, {count} decoders in one lane"
            rates: dict[str, list[float]] = defaultdict(list)
            for number in range(scale.rounds):
                root = folder / f"store {count} {number}"
                rates[bare].append(scale.video_frames * _bare_pace(source, spec, root, scale, count))
                pace = build_pace(source, spec, root, scale, decoders=count, nframe=scale.video_frames)
                rates[ours].append(scale.video_frames * pace.units_per_s)
                paces.append(pace)
            lines += rate_lines(rates, base=bare)
    return [
        Row(
            "decode-bound",
            "decode-bound build against the same decoders alone",
            "frames/s",
            lines,
            [
                f"{scale.video_frames} frames of a video ({scale.video.title}), each resized and cropped to 336 x 336, "
                "by the function that a build's decoders call; the model costs nothing. The bare processes drop "
                "what they decoded, the build's hand it to the encoder's process. With as many decoders as cores "
                "there is no core left for driver, Ray and encoder.",
                stage_remark(paces, scale.video_frames),
            ],
        )
    ]


def _bare_pace(source: OneVideo, spec: FirstPixelSpec, root: Path, scale: Scale, count: int) -> float:
    """Units a second of `count` processes that do nothing but decode."""
    with FeatureStore(root) as store:
        task = BuildTask(spec, str(store.root), None, nframe=scale.video_frames)
        unit = next(plan_build(source, task, store, overwrite=False).units())
    # Forks would share locks of torch's and Ray's threads.
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(count), context.Queue()
    arguments = (unit, task, scale.window_s, start, results)
    processes = [context.Process(target=_decode, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    paces = [results.get(timeout=scale.window_s + 300) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(paces))


def _decode(unit: Unit, task: BuildTask, seconds: float, start: Any, results: Any) -> None:
    """Decode one unit again and again for `seconds`; puts the units a second into `results`."""
    torch.set_num_threads(1)
    if not isinstance(first := decode_unit(unit, task), DecodedUnit):
        raise RuntimeError(f"the video cannot be decoded: {first.reason}")
    start.wait()
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        decode_unit(unit, task)
        count += 1
    results.put(count / (time.perf_counter() - start_s))
