"""A lane's encoder, with the model and the writer, as a plain class: `cluster` turns it into a Ray actor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import ray
import torch

from cache_store import FeatureStore
from cache_store.naming import BATCH_SIZES
from pipeline.decode_unit import DecodedUnit
from pipeline.encode_unit import EncodedUnit
from pipeline.failures import ErrorClass, UnitFailure, failure_of
from pipeline.lanes.batch_sizes import BatchSizes
from pipeline.lanes.device import DeviceStage
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.one_at_a_time import Hung
from pipeline.lanes.process_info import ProcessInfo, process_info
from pipeline.lanes.writer import Publishing, Writer
from pipeline.unit_done import UnitDone
from pipeline.work_plan import BuildTask


class EncoderProcess:
    """Holds the model on one device and the writer beside it.

    Called by several threads at once: while one call's unit is on the device others come, leave it, or are written.
    """

    def __init__(self, task: BuildTask, cpu_threads: int, limits: TimeLimits, *, replaces: bool) -> None:
        self._task, self._cpu_threads, self._limits, self._replaces = task, cpu_threads, limits, replaces
        self._loading = threading.Lock()
        self._is_loaded = False
        self._device = "cuda:0" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"

    def ready(self) -> ProcessInfo:
        """Load the model if it is not loaded yet. Raises what loading raises, so that the driver sees the reason."""
        with self._loading:
            if not self._is_loaded:
                self._load()
        return process_info(self._device)

    def _load(self) -> None:
        # Ray starts its workers with OMP_NUM_THREADS=1, which would leave the lane's other cores idle.
        torch.set_num_threads(self._cpu_threads)
        self._store = FeatureStore(self._task.store_root, run_id=self._task.run_id)
        encoder = self._task.spec.load(self._device)
        name = torch.cuda.get_device_name(self._device) if self._device != "cpu" else "cpu"
        sizes = BatchSizes(self._store.root / BATCH_SIZES, self._task.spec.recipe(), device_name=name)
        self._stage = DeviceStage(encoder, self._device, sizes, limit_s=self._limits.encode_s)
        self._writer = Writer(self._task, self._store, limit_s=self._limits.write_s, replaces=self._replaces)
        self._is_loaded = True

    def encode(
        self, decoded: Sequence[DecodedUnit], places: Sequence[int], in_batch: bool = False
    ) -> list[UnitDone | UnitFailure | None]:
        """Encode the units at `places` and publish them. Returns only after each feature has its final name.

        With `in_batch` they are of one batch, and share its forward. What follows a unit that spoils the process is
        not tried, and None.
        """
        self._writer.expect(len(places))
        ends: list[Publishing | UnitFailure | None] = [None] * len(places)
        units = [decoded[place] for place in places]
        alone = (self._encoded(unit if unit.batch is None else unit.by_itself()) for unit in units)
        encode = self._batch_encoded(units) if in_batch else alone
        for number, encoded in enumerate(encode):
            if isinstance(encoded, EncodedUnit):
                ends[number] = self._writer.publish(encoded)
                continue
            ends[number] = encoded
            if encoded.spoils_process and not in_batch:
                self._writer.expect_no_more(len(places) - number)
                break
            self._writer.expect_no_more()
        return [self._writer.result(end) if isinstance(end, Publishing) else end for end in ends]

    def _batch_encoded(self, units: list[DecodedUnit]) -> Iterator[EncodedUnit | UnitFailure]:
        """Encode units of one batch together; if that fails, and the process can go on, each of them by itself."""
        try:
            yield from self._stage.encode_batch(units)
        except Hung as exc:
            for unit in units:
                yield _hung(unit, exc)
        except Exception as exc:  # noqa: BLE001 - as below; which of them is to blame shows when each is alone
            failures = [failure_of(exc, key=unit.unit.name, stage="encode") for unit in units]
            can_go_on = not failures[0].spoils_process
            yield from (self._encoded(unit.by_itself()) for unit in units) if can_go_on else failures

    def _encoded(self, decoded: DecodedUnit) -> EncodedUnit | UnitFailure:
        try:
            return self._stage.encode(decoded)
        except Hung as exc:
            return _hung(decoded, exc)
        except Exception as exc:  # noqa: BLE001 - the unit is named in the report, and the lane goes on
            return failure_of(exc, key=decoded.unit.name, stage="encode")

    def close(self) -> None:
        """Write down what the store still holds in memory: use times and counters."""
        if self._is_loaded:
            self._store.close()


def _hung(decoded: DecodedUnit, exc: Hung) -> UnitFailure:
    return UnitFailure(decoded.unit.name, "encode", str(exc), ErrorClass.HANG, spoils_process=True)
