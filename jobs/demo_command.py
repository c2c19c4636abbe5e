"""`vlm-cache demo`: the whole path on sample input made here, with small random models of the real architectures."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from torch.utils.data import DataLoader

from cache_store import FeatureStore
from consumers.training import FeatureDataset
from jobs.sample_input import make_sample_input
from jobs.sizes import format_seconds
from pipeline.errors import BuildRefused
from pipeline.lanes import connection

_MARKER = ".made-by-vlm-cache-demo"


def demo(args: argparse.Namespace) -> int:
    """Run every step, printing each command first; returns 0 if each came out as it should."""
    started = time.monotonic()
    _make_folder(args.folder)
    _say("1. Making sample videos (one is broken on purpose) and robot episodes")
    sample = make_sample_input(args.folder / "input")
    video_store, step_store = args.folder / "longva_cache", args.folder / "vla_cache"
    videos = f"build --source folder --data {sample.videos} --dataset demo-videos --encoder longva --model small"
    videos += f" --nframe 16 --store {video_store} --limit 1GiB"
    steps = f"build --source vla --data {sample.episodes} --encoder qwen2_5_vl --model small --store {step_store}"

    with connection(None):
        _say("2. The LongVA-style video cache")
        _run(videos, expected=1)
        _say("3. The Qwen2.5-VL episode cache")
        _run(steps, expected=0)
        _say("4. The same builds again: everything is skipped, the broken video is tried once more")
        _run(videos, expected=1)
        _run(steps, expected=0)
    _say("5. Reading the features back through a DataLoader, as training does")
    for store in (video_store, step_store):
        _read_back(store)
    _say("6. What the stores hold")
    for store in (video_store, step_store):
        _run(f"stats --store {store}", expected=0)
    _say(f"Done in {format_seconds(time.monotonic() - started)}. Next: `vlm-cache show` on any file of {video_store}")
    return 0


def _make_folder(folder: Path) -> None:
    """Make the folder anew. Only one that a demo made is ever deleted."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER).is_file():
            raise BuildRefused(f"{folder} exists and was not made by the demo; name another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _say(headline: str) -> None:
    print(f"\n== {headline}", flush=True)


def _run(command: str, *, expected: int) -> None:
    """Run one `vlm-cache` command in this process, as a person would type it."""
    from jobs.__main__ import main

    print(f"$ vlm-cache {command}", flush=True)
    status = main(shlex.split(command))
    sys.stdout.flush()
    if status != expected:
        raise BuildRefused(f"`vlm-cache {command}` ended with exit status {status}, expected {expected}")


def _read_back(root: Path) -> None:
    with FeatureStore(root) as store:
        keys = list(store.keys())
    started = time.monotonic()
    loader = DataLoader(FeatureDataset(root, keys), batch_size=None, num_workers=2)
    shapes: dict[str, int] = {}
    for value in loader:
        tensor = value["vision_features"] if isinstance(value, dict) else value
        shape = f"{tuple(tensor.shape)} {tensor.dtype}"
        shapes[shape] = shapes.get(shape, 0) + 1
    print(f"{root.name}: {len(keys)} features in {format_seconds(time.monotonic() - started)}")
    for shape, count in shapes.items():
        print(f"  {count} x {shape}")
