"""Row `scheduling`: units that cost nothing, through two lanes, against a bare loop over two Ray actors."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.build.encoders import NoOpSpec
from benchmarks.build.pace import KINDS, Pace, build_pace, cluster
from benchmarks.build.samples import EmptySteps
from benchmarks.build.scale import Scale
from benchmarks.store.report import Line, Row, rate_lines
from benchmarks.store.timing import median

ONE_CALL = "bare Ray loop, 2 actors, one call a unit"
TWO_CALLS = "bare Ray loop, 2 + 2 actors, two calls a unit"
IN_FLIGHT = 32  # calls of one actor in the bare loops, as deep as a lane's encoder has small units
LEAST_PER_S = 2500.0
LANES = 2
MANY = 200_000  # more units than any window takes


@dataclass(frozen=True)
class _Variant:
    name: str
    spec: NoOpSpec
    overwrite: bool = False


VARIANTS = (
    _Variant("build, the store's put replaced by nothing", NoOpSpec(publishes=False)),
    _Variant("build, the same without asking the store first (--overwrite)", NoOpSpec(publishes=False), True),
    _Variant("build, with the store's put and its flushes", NoOpSpec()),
)


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row, and one with the CPU time that each kind of process takes for a unit."""
    rates: dict[str, list[float]] = defaultdict(list)
    paces: dict[str, list[Pace]] = defaultdict(list)
    with cluster():
        # They ask for no CPU, or the lanes' processes would wait for it.
        actors = [ray.remote(_Nothing).options(num_cpus=0).remote() for _ in range(2 * LANES)]
        ray.get([actor.work.remote(0) for actor in actors])  # they are up
        for number in range(scale.rounds):
            rates[ONE_CALL].append(_one_call(actors[:LANES], scale.window_s))
            rates[TWO_CALLS].append(_two_calls(actors[:LANES], actors[LANES:], scale.window_s))
            for place, variant in enumerate(VARIANTS[: scale.variants]):
                root = folder / f"store {number} {place}"
                source = EmptySteps(MANY)
                pace = build_pace(
                    source, variant.spec, root, scale, lanes=LANES, decoders=1, overwrite=variant.overwrite
                )
                rates[variant.name].append(pace.units_per_s)
                paces[variant.name].append(pace)
    lines = [_with_target(line) for line in rate_lines(rates, base=ONE_CALL)]
    return [
        Row(
            "scheduling",
            f"units that cost nothing, through {LANES} lanes",
            "units/s",
            lines,
            [
                f"{LANES} lanes of one decoder and one encoder each. A unit is a step without images: a decoder "
                "makes the (empty) unit, an encoder makes 16 bytes, which go through device stage and writer to the "
                "store; up to 16 such units share a call. The bare loops keep up to "
                f"{IN_FLIGHT} calls in flight on each actor, and look at each result.",
            ],
        ),
        Row(
            "scheduling-cpu",
            "CPU time of a unit that costs nothing, by process",
            "µs",
            [
                Line(f"{variant.name}: {kind}", median([pace.cpu_us.get(kind, 0.0) for pace in paces[variant.name]]))
                for variant in VARIANTS[: scale.variants]
                for kind in KINDS
            ],
        ),
    ]


def _with_target(line: Line) -> Line:
    return replace(line, least_value=LEAST_PER_S) if line.name.startswith("build") else line


class _Nothing:
    """An actor that does nothing."""

    def work(self, unit: object) -> None:
        return None


def _one_call(actors: list[Any], seconds: float) -> float:
    """Units a second of a loop that keeps every actor busy."""
    calls = {actor.work.remote(0): actor for actor in actors for _ in range(IN_FLIGHT)}
    done, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        for call in _ready(calls):
            actor = calls.pop(call)
            calls[actor.work.remote(done)] = actor
            done += 1
    passed_s = time.perf_counter() - start_s
    ray.get(list(calls))
    return done / passed_s


def _two_calls(decoders: list[Any], encoders: list[Any], seconds: float) -> float:
    """Units a second of a loop that hands each result of one actor to another one."""
    pairs = list(zip(decoders, encoders, strict=True))
    calls = {pair[0].work.remote(0): (pair, 0) for pair in pairs for _ in range(IN_FLIGHT)}
    done, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        for call in _ready(calls):
            pair, stage = calls.pop(call)
            if stage == 0:
                calls[pair[1].work.remote(call)] = (pair, 1)
            else:
                calls[pair[0].work.remote(done)] = (pair, 0)
                done += 1
    passed_s = time.perf_counter() - start_s
    ray.get(list(calls))
    return done / passed_s


def _ready(calls: dict[Any, Any]) -> list[Any]:
    """The calls that came back, at least one; looks at what they gave."""
    ready, rest = ray.wait(list(calls), num_returns=1)
    if rest:
        ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
    for call in ready:
        ray.get(call)
    return list(ready)
