"""Row `parity`: the features of each small model on the CPU and on a device, in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.store.report import Line, Row
from pipeline.encoders import FAMILIES, StepInput, load_spec

DTYPES = ("float32", "bfloat16", "float16")
FRAMES = 12
SIDE = 84  # of the small models' images


def measure(device: str) -> list[Row]:
    """The rows: CPU against device; and on the device, one frame at a time against all frames at once."""
    lines, batches = [], []
    for family in FAMILIES:
        for dtype in DTYPES:
            name = f"{family} {dtype}"
            spec = load_spec(family, "small", dtype=dtype)
            on_cpu, on_device = _features(spec.load("cpu")), _features(spec.load(device))
            lines.append(_line(name, on_cpu(None), on_device(None)))
            batches.append(_line(f"{name}, twice the same", on_device(None), on_device(None)))
            if family != "qwen2_5_vl":  # which makes one unpadded forward of each step, whatever else there is
                batches += [_line(f"{name}, {count} at a time", on_device(None), on_device(count)) for count in (1, 5)]
    return [
        Row("parity", f"features on the CPU and on {device}: values with equal bits", "%", lines),
        Row(
            "batches",
            f"features on {device} however many of {FRAMES} frames go at once: values with equal bits",
            "%",
            batches,
        ),
    ]


def _features(encoder: Any) -> Callable[[int | None], torch.Tensor]:
    """A function from frames at once to the features, on the CPU."""
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    images = tuple(pixels[:2])

    def features(at_most: int | None) -> torch.Tensor:
        if hasattr(encoder, "frames_per_forward"):
            return torch.clone(encoder.forward(torch.tensor(pixels), at_most=at_most).cpu())
        found: torch.Tensor = encoder.encode(StepInput(images, "pick the block"))
        return found

    return features


def _line(name: str, reference: torch.Tensor, found: torch.Tensor) -> Line:
    """Share of the values with equal bits, and the largest difference beside the largest value."""
    equal = (reference.view(_INTEGERS[reference.dtype]) == found.view(_INTEGERS[found.dtype])).double().mean()
    error, largest = (reference.double() - found.double()).abs().max(), reference.double().abs().max()
    return Line(name, float(equal) * 100, note=f"max abs error {error:.2g}, largest value {largest:.3g}")


_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
