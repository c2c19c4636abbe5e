"""Time and memory of `vlm-cache plan` for 1,000,000 units over a store of 1,000,000 entries, half of them wanted."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.build.large_plan import checkpoint, data_set, store
from benchmarks.store import machine
from benchmarks.store.child import Finished, run_alone
from benchmarks.store.report import Line, Row, table, to_json
from benchmarks.store.timing import median

MOST_S = 60.0
MOST_BYTES = 500 * 10**6


@dataclass(frozen=True)
class _Question:
    name: str
    arguments: tuple[str, ...]
    evicts: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and write JSON; 0 even where a target is missed."""
    options = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-plan-", dir=options.folder)).resolve()
    try:
        facts = machine.described(folder)
        rows = measure(folder, options.units, rounds=options.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        print(table(row), end="\n\n")
    if options.json is not None:
        figures = to_json(rows, facts, {"units": options.units, "rounds": options.rounds})
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(folder: Path, units: int, *, rounds: int) -> list[Row]:
    """The rows of time and of memory, each plan in a process of its own."""
    data = data_set(folder / "data", units)
    print("filling the store ...", file=sys.stderr, flush=True)
    root = folder / "store"
    model = checkpoint(folder / "model")
    stored_bytes = store(root, data, model, units)
    where = ("--source", "lerobot", "--data", str(data), "--encoder", "qwen2_5_vl", "--model", str(model))
    base = (*where, "--probe", "0", "--json")
    questions = [
        _Question("vlm-cache plan", base),
        _Question("the same at the limit, half of the rest to evict", (*base, "--limit", str(stored_bytes)), True),
        _Question("the same with --overwrite", (*base, "--overwrite")),
    ]
    finished: dict[str, list[Finished]] = {question.name: [] for question in questions}
    for _ in range(rounds):
        for question in questions:
            one = run_alone("command", root, name="plan", arguments=question.arguments)
            _check(one.found["printed"], question, units)
            finished[question.name].append(one)
    seconds, memory = [], []
    for name, of_one in finished.items():
        seconds.append(Line(name, median([one.wall_s for one in of_one]), most_value=MOST_S))
        memory.append(Line(name, max(one.peak_bytes for one in of_one) / 1e6, most_value=MOST_BYTES / 1e6))
    what = f"{units:,} units over a store of {units:,} entries"
    remark = "Each in a fresh process from its start to its exit, imports and the model's digest included."
    return [
        Row("plan", f"{what}: time", "s", seconds, [remark]),
        Row("plan-memory", f"{what}: peak memory of the process", "MB", memory),
    ]


def _check(printed: dict[str, Any], question: _Question, units: int) -> None:
    """Refuse figures of a wrong answer.

    Raises:
        RuntimeError: the plan miscounted.
    """
    skipped = 0 if "--overwrite" in question.arguments else units // 2
    told = (printed["todo"], printed["skipped"], printed["evicts"]["entries"] > 0)
    if told != (units - skipped, skipped, question.evicts):
        raise RuntimeError(f"{question.name} says {told}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build.plan_million",
        description=__doc__,
        epilog="example: python -m benchmarks.build.plan_million --folder /dev/shm --json plan.json",
    )
    parser.add_argument("--units", type=int, default=1_000_000, metavar="N", help="a multiple of 2,000 (1,000,000)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of each plan (default 1)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the store is made; 5 GB for a million")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
