"""The command of a benchmark whose rows are functions: measure in a folder of its own, print, write down, record."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from benchmarks.store import machine
from benchmarks.store.document import record
from benchmarks.store.report import Row, table, to_json

ScaleT = TypeVar("ScaleT")


@dataclass(frozen=True)
class RowsCommand(Generic[ScaleT]):
    """`python -m benchmarks.<name>`; `rows` are measured in their order, each in a new folder, with the scale."""

    name: str
    about: str
    rows: Mapping[str, Callable[[Path, ScaleT], list[Row]]]
    packages: Sequence[str]  # whose versions are told
    full: ScaleT
    quick: ScaleT
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    adapted: Callable[[ScaleT, argparse.Namespace], ScaleT] = lambda scale, _: scale
    facts: Callable[[ScaleT], dict[str, str]] = lambda _: {}  # about the machine, beside the usual ones
    target: str = ""  # `make bench-<target>`; "": its name

    def run(self, arguments: list[str] | None = None) -> int:
        """Run what was asked for; 0 even where a target is missed, because a figure is no failure of the run."""
        parser = self._parser()
        options = parser.parse_args(arguments)
        if options.record and options.only:
            parser.error("--record writes the whole page; run it without --only")
        scale = self.adapted(self.quick if options.quick else self.full, options)
        torch.set_num_threads(1)
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-", dir=options.folder)).resolve()
        try:
            facts = machine.described(folder, self.packages) | self.facts(scale)
            rows = self._measured(folder, scale, options.only or list(self.rows))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
        told: Any = scale
        fields = to_json(rows, facts, {"quick": options.quick, **asdict(told)})
        if options.json is not None:
            options.json.write_text(json.dumps(fields, indent=1) + "\n")
        if options.record:
            record(fields, Path(__file__).parents[1] / "docs", name=self.target or self.name)
        return 0

    def _measured(self, folder: Path, scale: ScaleT, wanted: list[str]) -> list[Row]:
        rows: list[Row] = []
        for name, measure in self.rows.items():
            if name not in wanted:
                continue
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            place = folder / name
            place.mkdir()
            found = measure(place, scale)
            rows += found
            for row in found:
                print(table(row), end="\n\n", flush=True)
        return rows

    def _parser(self) -> argparse.ArgumentParser:
        first = next(iter(self.rows))
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{self.name}",
            description=self.about,
            epilog=f"example: python -m benchmarks.{self.name} --only {first} --json {first}.json",
        )
        parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
        parser.add_argument(
            "--only", action="append", choices=self.rows, metavar="ROW", help=f"one of {', '.join(self.rows)}"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        parser.add_argument("--folder", type=Path, metavar="DIR", help="put what is written on this folder's disk")
        parser.add_argument("--record", action="store_true", help="rewrite the figures in docs/benchmarks.md")
        self.add_options(parser)
        return parser
