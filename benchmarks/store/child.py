"""Runs one case in a process of its own, for its time from start to exit and its peak memory."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """What a case took and found. `wall_s` includes the start of Python and its imports."""

    wall_s: float
    peak_bytes: int
    found: dict[str, Any]


def run_alone(case: str, root: Path, *, module: str = "benchmarks.store.cases", **arguments: Any) -> Finished:
    """Run `case` of the `CASES` of a module on the store at `root`; what it prints goes nowhere.

    Raises:
        subprocess.CalledProcessError: the case failed; its message is on stderr.
    """
    result = root.parent / f"{case}.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.store.child",
        module,
        case,
        str(root),
        str(result),
        json.dumps(arguments),
    ]
    start_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=_ROOT)
    wall_s = time.perf_counter() - start_s
    fields = json.loads(result.read_text())
    return Finished(wall_s, fields["peak_bytes"], fields["found"])


def _peak_bytes() -> int:
    """The most memory that this process ever held.

    Not `getrusage`: its ru_maxrss keeps, across exec, what the parent held when it started this process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _main(module: str, case: str, root: str, result: str, arguments: str) -> None:
    cases: Mapping[str, Callable[..., dict[str, Any]]] = importlib.import_module(module).CASES
    found = cases[case](Path(root), **json.loads(arguments))
    Path(result).write_text(json.dumps({"peak_bytes": _peak_bytes(), "found": found}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
