"""A lane's decoder as a plain class: `cluster` turns it into a Ray actor.

Decoding never shares a process with the model: a decoder can die inside native code, and the model is dear to load. Nor
does it import torch or transformers: they cost more CPU time than decoding many a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache_store import FeatureStore
from pipeline.decode_unit import DecodedUnit, decode_units
from pipeline.failures import UnitFailure
from pipeline.lanes.process_info import ProcessInfo, process_info
from pipeline.unit_done import UnitDone, published
from pipeline.work_plan import BuildTask, Unit


@dataclass(frozen=True)
class DecodeOutcome:
    """What the scheduler needs to know of a decoded unit; the pixels go from process to process without it."""

    failure: UnitFailure | None = None
    present: UnitDone | None = None  # the store has the feature meanwhile: nothing was decoded
    nbytes: int = 0
    decode_s: float = 0.0


class DecoderProcess:
    """Turns units into pixels. One call at a time: the first one in flight is the one that runs."""

    def __init__(self, task: BuildTask, recheck: bool) -> None:
        self._task, self._recheck = task, recheck
        self._store: FeatureStore | None = None  # opened by the first call, so that who never works leaves no trace

    def ready(self) -> ProcessInfo:
        """Answer as soon as the process can work."""
        return process_info("cpu")

    def decode(self, units: Sequence[Unit]) -> tuple[list[DecodeOutcome], list[DecodedUnit | None]]:
        """Decode units; the second value stays in the object store until the encoder takes it.

        What another build or a lost process has published since the plan was made is not decoded again.
        """
        present = [self._published(unit) for unit in units]
        wanted = [unit for unit, done in zip(units, present, strict=True) if done is None]
        rest = iter(decode_units(wanted, self._task))
        outcomes: list[DecodeOutcome] = []
        decoded: list[DecodedUnit | None] = []
        for done in present:
            one = next(rest) if done is None else None
            if isinstance(one, DecodedUnit):
                outcomes.append(DecodeOutcome(nbytes=one.nbytes, decode_s=one.decode_s))
                decoded.append(one)
            else:
                outcomes.append(DecodeOutcome(failure=one, present=done))
                decoded.append(None)
        return outcomes, decoded

    def close(self) -> None:
        """Write the rest of the store's journals."""
        if self._store is not None:
            self._store.close()

    def _published(self, unit: Unit) -> UnitDone | None:
        if not self._recheck:
            return None
        if self._store is None:
            self._store = FeatureStore(self._task.store_root, run_id=self._task.run_id)
        return published(unit, self._task, self._store)
