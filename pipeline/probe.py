"""A few units of a plan decoded and encoded to see what one takes, and not stored."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import fmean
from typing import cast

import torch

from cache_store.put_item import encoded_item
from pipeline.decode_unit import DecodedUnit, decode_unit
from pipeline.encode_unit import encoded_unit, put_item
from pipeline.encoders import StepEncoder, VideoEncoder
from pipeline.encoders.base import StepOnDevice
from pipeline.failures import ErrorClass, UnitFailure, failure_of
from pipeline.work_plan import BuildTask, Decision, Plan, Unit, unit_name


@dataclass(frozen=True)
class ProbedUnit:
    """What one unit took."""

    key: str
    decode_s: float  # in one decoder
    encode_s: float  # on the device, the copies to and from it included
    bytes: int  # of the file that the store would keep


@dataclass(frozen=True)
class Probe:
    """What the probed units took, and those that gave no feature."""

    device: str
    units: list[ProbedUnit]
    failed: list[UnitFailure]

    @property
    def decode_s(self) -> float | None:
        """The mean; None where no unit went through."""
        return fmean(unit.decode_s for unit in self.units) if self.units else None

    @property
    def encode_s(self) -> float | None:
        """The mean, as above."""
        return fmean(unit.encode_s for unit in self.units) if self.units else None

    @property
    def bytes(self) -> float | None:
        """The mean, as above."""
        return fmean(unit.bytes for unit in self.units) if self.units else None


def probe_units(plan: Plan, *, count: int, device: str, cpu_threads: int, limit_s: float) -> Probe:
    """Decode and encode `count` units, spread evenly over what is to be built; stores nothing.

    A unit that fails is named, and takes no other unit with it: decoding has a process of its own, and `limit_s`
    seconds for a unit. The first unit that goes through does so twice, and only the second time counts: libraries
    load and devices warm up with the first.

    Raises:
        EncoderError: the model cannot be loaded.
    """
    found = Probe(device, [], [])
    units = _spread(plan, count)
    if not units:
        return found
    if device == "cpu":
        torch.set_num_threads(cpu_threads)
    encoder = plan.task.spec.load(device)
    with _Decoder(plan.task, limit_s) as decoder:
        for unit in units:
            probed = _probed(unit, decoder, encoder, device)
            if not found.units and isinstance(probed, ProbedUnit):
                probed = _probed(unit, decoder, encoder, device)
            if isinstance(probed, ProbedUnit):
                found.units.append(probed)
            else:
                found.failed.append(probed)
    return found


def _spread(plan: Plan, count: int) -> list[Unit]:
    places = {(2 * number + 1) * plan.todo // (2 * count) for number in range(count)}
    todo = (sample for sample, decision in plan.planned() if decision == Decision.TODO)
    task = plan.task
    return [Unit(unit_name(sample), task.key(sample), sample) for place, sample in enumerate(todo) if place in places]


def _probed(
    unit: Unit, decoder: _Decoder, encoder: VideoEncoder | StepEncoder, device: str
) -> ProbedUnit | UnitFailure:
    decoded = decoder.decode(unit)
    if isinstance(decoded, UnitFailure):
        return decoded
    started = time.perf_counter()
    try:
        features = _encode(encoder, decoded)
    except Exception as exc:  # noqa: BLE001 - named, as a build would name it
        return failure_of(exc, key=unit.name, stage="encode")
    together = 1 if decoded.batch is None else len(decoded.batch.steps)
    encode_s = (time.perf_counter() - started) / together
    encoded = encoded_unit(decoded, features, device=device, encode_s=encode_s)
    try:
        file_bytes = sum(map(len, encoded_item(put_item(encoded, decoder.task)).buffers))
    except Exception as exc:  # noqa: BLE001 - as above: int8 takes no infinity
        return failure_of(exc, key=unit.name, stage="write")
    return ProbedUnit(unit.name, decoded.decode_s / together, encode_s, file_bytes)


def _encode(encoder: VideoEncoder | StepEncoder, decoded: DecodedUnit) -> torch.Tensor:
    if decoded.batch is None:
        return encoder.encode(decoded.pixels)  # type: ignore[arg-type]
    steps = [
        StepOnDevice([torch.tensor(image) for image in step.images], step.instruction)
        for step in decoded.batch.steps.values()
    ]
    features = cast(StepEncoder, encoder).forward(steps)
    return features[decoded.row : decoded.row + 1].cpu().clone()


class _Decoder:
    """One process that decodes; a new one takes its place when it dies or hangs. A context manager."""

    def __init__(self, task: BuildTask, limit_s: float) -> None:
        self.task, self._limit_s = task, limit_s
        self._task_of_decoder = task.for_decoders()
        self._pool = self._new_pool()

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def decode(self, unit: Unit) -> DecodedUnit | UnitFailure:
        """Decode one unit, or say why not."""
        try:
            pid = self._pool.submit(os.getpid).result()
            return self._pool.submit(decode_unit, unit, self._task_of_decoder).result(timeout=self._limit_s)
        except BrokenProcessPool:
            self._pool = self._new_pool()
            return UnitFailure(unit.name, "decode", "the decoder's process died", ErrorClass.CRASH)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._pool.shutdown()
            self._pool = self._new_pool()
            return UnitFailure(unit.name, "decode", f"no result after {self._limit_s:g} s", ErrorClass.HANG)

    @staticmethod
    def _new_pool() -> ProcessPoolExecutor:
        # Not forked: a decoder's threads and the model's would share what neither expects to share.
        return ProcessPoolExecutor(1, get_context("spawn"))
