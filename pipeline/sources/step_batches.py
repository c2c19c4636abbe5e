"""The steps of an episode in fixed groups that share a forward, whatever of them is to be built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import cast

from pipeline.sources.samples import IgnoredFile, Sample, Source, StepSample


class StepBatches:
    """The samples of a source of steps, each with those that it shares a forward with.

    Groups are cut by the source's order alone, `size` steps after `size` steps of each episode. So a feature's bits
    depend neither on what the store holds already nor on which units an earlier run left. A step that the source
    calls impossible keeps its place in its group, and has no part in the forward.
    """

    def __init__(self, source: Source, size: int) -> None:
        self._source, self._size = source, size

    def __iter__(self) -> Iterator[Sample]:
        steps = (cast(StepSample, sample) for sample in self._source)
        for _, episode in groupby(steps, key=lambda step: step.dataset):
            while group := list(islice(episode, self._size)):
                together = tuple(step for step in group if step.problem is None)
                for step in group:
                    yield step if step.problem is not None else replace(step, together=together)

    def ignored(self) -> list[IgnoredFile]:
        """Return what the source passed over."""
        return self._source.ignored()
