"""Row `encoder-stage`: one encoder's process without Ray (uploads, forwards, downloads, writing) against its model."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.build.bare import BARE, bare_pace
from benchmarks.build.busy import utilisation
from benchmarks.build.encoders import clip_spec
from benchmarks.store.report import Line, Row, rate_lines
from benchmarks.store.timing import median
from cache_store import FeatureStore, VideoKey
from pipeline.decode_unit import DecodedUnit
from pipeline.encoders.longva import LongvaSpec
from pipeline.lanes.batch_sizes import BatchSizes
from pipeline.lanes.device import DeviceStage
from pipeline.lanes.writer import Writer
from pipeline.sources import VideoSample
from pipeline.unit_done import UnitDone
from pipeline.work_plan import BuildTask, Unit

MOVED = "encoder stage, transfers, nothing written"
WRITTEN = "encoder stage, transfers and writing"
LEAST_SHARE = 0.97
AT_ONCE = 3  # units in the process: as many as a lane's encoder has (`cluster.ENCODER_DEPTH`)
KEPT = 12  # names that are written again and again, so that memory holds them
LIMIT_S = 600.0


@dataclass(frozen=True)
class Size:
    """What the stage encodes, and for how long."""

    vision: dict[str, Any]  # CLIPVisionConfig's arguments
    frames: int
    window_s: float
    rounds: int
    dtype: str = "float16"


@dataclass(frozen=True)
class _Pace:
    frames_per_s: float
    forward_share: float  # of the time, by CUDA events before and after each forward


def measure(size: Size, device: str, folder: Path) -> list[Row]:
    """The row. `folder` should lie in memory: what is measured is our overhead, not a disk."""
    spec = clip_spec(size.vision, dtype=size.dtype)
    encoder = spec.load(device)
    rates: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    busy: dict[str, list[float]] = defaultdict(list)
    with FeatureStore(folder / "store") as store:
        process = _Process(spec, encoder, store, device, size)
        for _ in range(size.rounds):
            with utilisation(device) as seen:
                rates[BARE].append(bare_pace(encoder, process.pixels[0], device, seconds=size.window_s))
            busy[BARE] += seen
            for name, is_written in ((MOVED, False), (WRITTEN, True)):
                with utilisation(device) as seen:
                    pace = process.pace(size.window_s, is_written=is_written)
                busy[name] += seen
                rates[name].append(pace.frames_per_s)
                shares[name].append(pace.forward_share)
    notes = {name: _note(shares[name], busy[name]) for name in rates}
    lines: list[Line] = rate_lines(rates, base=BARE, least_ratios={WRITTEN: LEAST_SHARE}, notes=notes)
    height, width = spec.preprocess.height, spec.preprocess.width
    feature_mb = spec.feature_bytes(size.frames) / 1e6
    remarks = [
        f"A CLIP tower of {spec.architecture['num_hidden_layers']} layers, {spec.architecture['hidden_size']} wide, "
        f"random weights, {size.dtype}; {size.frames} frames of {height} x {width} a unit, features of "
        f"{feature_mb:.0f} MB. The bare loop's frames lie on the device and its features stay there. "
        f"The stage has {AT_ONCE} units at once."
    ]
    return [
        Row("encoder-stage", f"one encoder's process on {device} against its model alone", "frames/s", lines, remarks)
    ]


def _note(shares: list[float], busy: list[float]) -> str:
    told = [f"forwards run {100 * median(shares):.1f} % of the time"] if shares else []
    if busy:
        told.append(f"GPU busy {sum(busy) / len(busy):.0f} % by its driver")
    return ", ".join(told)


class _Process:
    """What an encoder's process of a lane holds, called by as many threads as a lane has calls in flight."""

    def __init__(self, spec: LongvaSpec, encoder: Any, store: FeatureStore, device: str, size: Size) -> None:
        self._task = BuildTask(spec, str(store.root), None, nframe=size.frames)
        sizes = BatchSizes(store.root / "sizes.json", {"family": "longva", "dtype": size.dtype}, device_name=device)
        self._stage = DeviceStage(encoder, device, sizes, limit_s=LIMIT_S)
        self._writer = Writer(self._task, store, limit_s=LIMIT_S)
        shape = (size.frames, spec.preprocess.height, spec.preprocess.width, 3)
        generator = np.random.default_rng(0)
        self.pixels = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)]
        self._signature = spec.model_signature

    def pace(self, seconds: float, *, is_written: bool) -> _Pace:
        """Run units for `seconds` after each thread has finished one.

        Raises:
            RuntimeError: a unit failed.
        """
        warm = threading.Barrier(AT_ONCE)
        finished: list[tuple[float, float]] = []  # when, and seconds of the forward
        problems: list[str] = []

        def work(number: int) -> None:
            try:
                self._run(number, is_written=is_written)
                warm.wait()
                until_s = time.perf_counter() + seconds
                while time.perf_counter() < until_s:
                    number += AT_ONCE
                    encode_s = self._run(number, is_written=is_written)
                    finished.append((time.perf_counter(), encode_s))
            except Exception as exc:  # noqa: BLE001 - a thread's error is raised by who started it
                problems.append(str(exc))
                warm.abort()

        _all_at_once(work, AT_ONCE)
        if problems or len(finished) < 2:
            raise RuntimeError(problems[0] if problems else f"{seconds:g} s are too short for two units")
        # From one unit's end to another's, because the first one may be late.
        finished.sort()
        passed_s = finished[-1][0] - finished[0][0]
        forwards_s = sum(encode_s for _, encode_s in finished[1:])
        return _Pace((len(finished) - 1) * len(self.pixels[0]) / passed_s, forwards_s / passed_s)

    def _run(self, number: int, *, is_written: bool) -> float:
        name = f"video {number % KEPT}"
        key = VideoKey("benchmark", name, self._task.nframe, self._signature)
        unit = Unit(name, key, VideoSample("benchmark", name, Path(name), name))
        decoded = DecodedUnit(unit, self.pixels[number % len(self.pixels)], {}, 0.0)
        if not is_written:
            return self._stage.encode(decoded).encode_s
        self._writer.expect()
        encoded = self._stage.encode(decoded)
        done = self._writer.result(self._writer.publish(encoded))
        if not isinstance(done, UnitDone):
            raise RuntimeError(done.reason)
        return encoded.encode_s


def _all_at_once(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
