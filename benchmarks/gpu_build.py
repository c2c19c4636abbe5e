"""`python -m benchmarks.gpu_build`: one GPU's share of the bare model's pace, and its bits beside the CPU's.

Needs torch, transformers and what the store needs; no network, no checkpoint, and neither Ray nor PyAV. Where both are
there, a build on Ray is measured too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.build import stand_ins
from benchmarks.store import machine
from benchmarks.store.report import Row, table, to_json

if TYPE_CHECKING:
    from benchmarks.build.device_stage import Size

PACKAGES = ("torch", "transformers", "numpy", "ray", "av", "zlib-ng")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}


def main(arguments: list[str] | None = None) -> int:
    """Run everything; 0 even where a target is missed, because a figure is no failure of the run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --cpu shows that the script runs")
    device = "cpu" if options.cpu else "cuda:0"
    if options.cpu:
        torch.set_num_threads(1)
    missing = stand_ins.prepare()
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-", dir=options.folder)).resolve()
    rows: list[Row] = []
    try:
        facts = {"device": _name(device), **machine.described(folder, PACKAGES)}
        rows = _measured(folder, device, _size(options), has_ray=not missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    if missing:
        print(
            f"not installed: {', '.join(missing)}; the encoder's stages ran in threads of this process, no build on Ray"
        )
    if options.json is not None:
        fields = to_json(rows, facts, {"quick": options.cpu, "frames": options.frames, "dtype": options.dtype})
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    return 0


def _measured(folder: Path, device: str, size: Size, *, has_ray: bool) -> list[Row]:
    # Only now: what they import may need the stand-ins.
    from benchmarks.build import device_stage, parity

    rows: list[Row] = []
    measures: list[Callable[[], list[Row]]] = [
        lambda: parity.measure(device),
        lambda: device_stage.measure(size, device, folder),
    ]
    if has_ray:
        from benchmarks.build.gpu_on_ray import measure as measure_on_ray

        measures.append(lambda: measure_on_ray(size, device, folder))
    for measure in measures:
        found = measure()
        rows += found
        for row in found:
            print(table(row), end="\n\n", flush=True)
    return rows


def _size(options: argparse.Namespace) -> Size:
    from benchmarks.build.device_stage import Size
    from pipeline.encoders.longva import OPENAI_336_VISION

    size = Size(OPENAI_336_VISION, options.frames, options.seconds, rounds=3, dtype=options.dtype)
    if not options.cpu:
        return size
    return replace(size, vision={**SMALL, "image_size": 28, "patch_size": 14}, frames=4, window_s=0.5, rounds=1)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_build",
        description=__doc__,
        epilog="example: python -m benchmarks.gpu_build --json gpu.json",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="tiny sizes on the CPU: shows that it runs, measures nothing"
    )
    parser.add_argument("--frames", type=int, default=128, metavar="N", help="frames of a unit (default 128)")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="default float16"
    )
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="of each contestant in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    in_memory = Path("/dev/shm")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        default=in_memory if in_memory.is_dir() else None,
        help="put the store there; needs 4 GB (default /dev/shm, so that no disk is measured)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
