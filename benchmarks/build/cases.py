"""What the row about memory runs in processes of its own; imports inside, because they are part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def driver(root: Path, *, units: int) -> dict[str, Any]:
    """Be the driver of a build of `units` units that cost nothing, on two lanes."""
    from benchmarks.build.encoders import NoOpSpec
    from benchmarks.build.pace import cluster
    from benchmarks.build.samples import EmptySteps
    from cache_store import FeatureStore
    from pipeline.lanes import run_build
    from pipeline.work_plan import BuildTask, plan_build

    with cluster(), FeatureStore(root) as store:
        task = BuildTask(NoOpSpec(), str(store.root), "memory")
        plan = plan_build(EmptySteps(units), task, store, overwrite=False)
        report = run_build(plan, store, lanes=2, decoders_per_lane=1, device="cpu")
    return {"done": report.done}


CASES: dict[str, Callable[..., dict[str, Any]]] = {"driver": driver}
