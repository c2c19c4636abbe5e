"""Row `list`: questions about a million entries, each asked by a fresh process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.store.child import Finished, run_alone
from benchmarks.store.full_store import filled
from benchmarks.store.report import Line, Row
from benchmarks.store.scale import Scale
from benchmarks.store.timing import median, ratios_to

BASE = "os.listdir of the names"
MOST_S = 5.0
MOST_BYTES = 500 * 10**6


@dataclass(frozen=True)
class _Question:
    name: str
    case: str
    arguments: dict[str, Any] = field(default_factory=dict)
    has_target: bool = False


def measure(folder: Path, scale: Scale) -> list[Row]:
    """The row, and one for the memory."""
    root = filled(folder, scale)
    questions = [
        _Question(BASE, "names"),
        _Question("vlm-cache stats", "command", {"name": "stats"}, has_target=True),
        _Question("vlm-cache ls", "command", {"name": "ls"}, has_target=True),
        _Question("plan of a resumed build: store.states", "plan", {"entries": scale.entries}, has_target=True),
        _Question("the old scripts' rescan", "rescan"),
    ]
    finished: dict[str, list[Finished]] = {question.name: [] for question in questions}
    for _ in range(scale.listing_rounds):
        for question in questions:
            finished[question.name].append(run_alone(question.case, root, **question.arguments))
    _check(finished, scale)
    times_s = {name: [one.wall_s for one in of_one] for name, of_one in finished.items()}
    ratios = ratios_to(BASE, times_s)
    seconds, memory = [], []
    for question in questions:
        name, of_one = question.name, ratios[question.name]
        peak_mb = max(one.peak_bytes for one in finished[name]) / 1e6
        most_s, most_mb = (MOST_S, MOST_BYTES / 1e6) if question.has_target else (None, None)
        seconds.append(Line(name, median(times_s[name]), median(of_one), min(of_one), max(of_one), most_value=most_s))
        memory.append(Line(name, peak_mb, most_value=most_mb))
    what = f"questions about {scale.entries:,} entries"
    remark = f"Each in a fresh process from its start to its exit, {scale.listing_rounds} rounds in turns."
    return [
        Row("list", f"{what}: time", "s", seconds, [remark]),
        Row("list-memory", f"{what}: peak memory of the process", "MB", memory),
    ]


def _check(finished: dict[str, list[Finished]], scale: Scale) -> None:
    """Refuse figures of a wrong answer.

    Raises:
        RuntimeError: the plan did not find every entry.
    """
    for one in (one for of_one in finished.values() for one in of_one):
        present = one.found.get("present", scale.entries)
        if present != scale.entries:
            raise RuntimeError(f"the plan found {present:,} of {scale.entries:,} entries")
