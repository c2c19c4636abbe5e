"""The two kinds of process of a lane, as plain classes: `cluster` turns them into Ray actors.

Decoding never shares a process with the model: a decoder can die inside native code, and the model is dear to load.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import ray
import torch

from cache_store import FeatureStore
from pipeline.encode_unit import (
    DecodedUnit,
    UnitDone,
    UnitFailure,
    commit_unit,
    decode_unit,
    encode_unit,
)
from pipeline.encoders import StepEncoder, VideoEncoder
from pipeline.work_plan import BuildTask, Unit


@dataclass(frozen=True)
class ProcessInfo:
    """Where a process of a lane came up."""

    node_id: str
    device: str


@dataclass(frozen=True)
class DecodeOutcome:
    """What the scheduler needs to know of a decoded unit; the pixels go from process to process without it."""

    failure: UnitFailure | None
    nbytes: int
    decode_s: float


class DecoderProcess:
    """Turns units into pixels. One at a time: the first unit in flight is the one that runs."""

    def __init__(self, task: BuildTask) -> None:
        self._task = task
        # PIL and numpy do the work here; torch's own pool would only take the encoder's cores.
        torch.set_num_threads(1)

    def ready(self) -> ProcessInfo:
        """Answer as soon as the process can work."""
        return ProcessInfo(ray.get_runtime_context().get_node_id(), "cpu")

    def decode(self, unit: Unit) -> tuple[DecodeOutcome, DecodedUnit | None]:
        """Decode one unit; the second value stays in the object store until the encoder takes it."""
        decoded = decode_unit(unit, self._task)
        if isinstance(decoded, UnitFailure):
            return DecodeOutcome(decoded, 0, 0.0), None
        return DecodeOutcome(None, decoded.nbytes, decoded.decode_s), decoded


class EncoderProcess:
    """Holds the model on one device and the writer beside it.

    Called by several threads at once: while one unit is written the next one is on the device.
    """

    def __init__(self, task: BuildTask, cpu_threads: int) -> None:
        self._task = task
        self._cpu_threads = cpu_threads
        self._on_device = threading.Lock()
        self._loaded = threading.Lock()
        self._encoder: VideoEncoder | StepEncoder | None = None
        self._device = "cuda:0" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"

    def ready(self) -> ProcessInfo:
        """Load the model if it is not loaded yet. Raises what loading raises, so that the driver sees the reason."""
        with self._loaded:
            if self._encoder is None:
                # Ray starts its workers with OMP_NUM_THREADS=1, which would leave the lane's other cores idle.
                torch.set_num_threads(self._cpu_threads)
                self._store = FeatureStore(self._task.store_root, run_id=self._task.run_id)
                self._encoder = self._task.spec.load(self._device)
        return ProcessInfo(ray.get_runtime_context().get_node_id(), self._device)

    def encode(self, decoded: DecodedUnit) -> UnitDone | UnitFailure:
        """Encode one unit and publish it. Returns only after the feature has its final name."""
        assert self._encoder is not None, "the scheduler calls ready() first"
        try:
            with self._on_device:
                encoded = encode_unit(decoded, self._encoder, device=self._device)
        except Exception as exc:  # noqa: BLE001 - the unit is named in the report, and the lane goes on
            return UnitFailure(decoded.unit.name, "encode", f"{type(exc).__name__}: {exc}")
        return commit_unit(encoded, self._task, self._store)

    def close(self) -> None:
        """Write down what the store still holds in memory: use times and counters."""
        if self._encoder is not None:
            self._store.close()
