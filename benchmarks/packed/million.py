"""Rows `million`: a store of many entries filled, packed, listed, verified by sample and read at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.packed.scale import Scale
from benchmarks.store.child import Finished, run_alone
from benchmarks.store.listing import MOST_BYTES, MOST_S
from benchmarks.store.report import Line, Row


@dataclass(frozen=True)
class Step:
    """One thing that is done to the store, by a process of its own."""

    name: str
    case: str
    arguments: dict[str, Any] = field(default_factory=dict)
    most_s: float | None = None
    answers: str = "present"  # what it found of every entry, if it says so
    count: int | None = None  # that it has to find; None: it does not say


def steps(scale: Scale) -> list[Step]:
    """In their order."""
    entries, width = scale.entries, scale.entry_width
    read = {"entries": entries, "width": width}
    batched = {"batches": scale.batches, "size": scale.batch}
    return [
        Step("fill by put_many, without flush", "fill", read),
        _command("pack", "--json", answers="files", count=entries),
        _command("stats", "--json", most_s=MOST_S, answers="entries", count=entries),
        _command("ls", most_s=MOST_S),
        Step("plan of a resumed build: store.states", "plan", {"entries": entries}, MOST_S, count=entries),
        Step("store.keys", "keys", count=entries),
        _command("verify", "--sample", str(scale.sampled), "--json", answers="checked", count=scale.sampled),
        Step(f"get of {scale.sampled:,} at random", "get", {**read, "reads": scale.sampled}),
        Step(f"{scale.batches:,} batches of {scale.batch} at random", "get_batch", {**read, **batched}),
    ]


def _command(name: str, *arguments: str, **expected: Any) -> Step:
    shown = " ".join([name, *(argument for argument in arguments if argument != "--json")])
    return Step(f"vlm-cache {shown}", "command", {"name": name, "arguments": arguments}, **expected)


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Time and peak memory of each step.

    Raises:
        RuntimeError: a step did not find what it has to.
    """
    root = folder / "store"
    finished = {step.name: done(root, step) for step in steps(scale)}
    most_s = {step.name: step.most_s for step in steps(scale)}
    what = f"a store of {scale.entries:,} entries, packed"
    remark = "Each step in a fresh process from its start to its exit, once."
    mapped = "Memory is the high-water mark, mapped parts of shards included, which the system can take back."
    return [
        Row(
            "million",
            f"{what}: time",
            "s",
            [Line(name, one.wall_s, most_value=most_s[name]) for name, one in finished.items()],
            [remark],
        ),
        Row(
            "million-memory",
            f"{what}: peak memory of the process",
            "MB",
            [
                Line(name, one.peak_bytes / 1e6, most_value=MOST_BYTES / 1e6 if most_s[name] is not None else None)
                for name, one in finished.items()
            ],
            [mapped],
        ),
    ]


def done(root: Path, step: Step) -> Finished:
    """Do one step to the store at `root`.

    Raises:
        RuntimeError: it found another number of entries.
    """
    one = run_alone(step.case, root, module="benchmarks.packed.cases", **step.arguments)
    found = one.found.get("printed", one.found).get(step.answers)
    if step.count not in (None, found):
        raise RuntimeError(f"{step.name} found {found} of {step.count:,}")
    return one
