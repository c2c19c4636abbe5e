"""`python -m benchmarks.streaming`: measure the rows about streaming in one run, print them, write them down."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rows_command import RowsCommand
from benchmarks.store.report import Row
from benchmarks.streaming import choices, endless, lengths, snapshots
from benchmarks.streaming.scale import QUICK, Scale

ROWS: dict[str, Callable[[Path, Scale], list[Row]]] = {
    "snapshot": snapshots.measure,
    "lengths": lengths.measure,
    "choices": choices.measure,
    "endless": endless.measure,
}
PACKAGES = ("torch", "transformers", "numpy")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, on the CPU with one torch thread."""
    command = RowsCommand(
        "streaming", __doc__, ROWS, PACKAGES, Scale(), QUICK, add_options=_add_options, adapted=_adapted, facts=_facts
    )
    return command.run(arguments)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="small", metavar="PATH_OR_ID|small", help="checkpoint (default small)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where the model runs (default cpu)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="of the model, else its own")


def _adapted(scale: Scale, options: argparse.Namespace) -> Scale:
    return replace(scale, model=options.model, device=options.device, dtype=options.dtype)


def _facts(scale: Scale) -> dict[str, str]:
    device = torch.device(scale.device)
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "model": Path(scale.model).name}
    return {"device": "cpu, one thread", "model": Path(scale.model).name}


if __name__ == "__main__":
    sys.exit(main())
