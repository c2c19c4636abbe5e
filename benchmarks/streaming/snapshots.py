"""Row `snapshot`: what it costs to keep a KV cache as it is before a question, against a deep copy of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.store.report import Line, Row, lines_of
from benchmarks.store.timing import Contestant, interleaved_s
from benchmarks.streaming.scale import Scale
from benchmarks.streaming.streams import repeated, waiting
from consumers.streaming import KVCacheManager

# Of Qwen2.5-VL-3B. Source: its configuration; 36,864 bytes a token in bfloat16.
LAYERS, HEADS, WIDTH = 36, 2, 128
MOST_S = 1e-3


def measure(_folder: Path, scale: Scale) -> list[Row]:
    """The row, with a deep copy and a snapshot for each length.

    Raises:
        RuntimeError: a snapshot copied, or did not survive what was appended after it.
    """
    lines: list[Line] = []
    for tokens in scale.snapshot_tokens:
        manager = filled(tokens, scale.device)
        check_shared(manager)
        size = f"{tokens:,} tokens, {manager.nbytes / 1e6:,.0f} MB"
        contestants = [
            Contestant(f"deepcopy of {size}", 1, waiting(scale.device, lambda kept=manager: copy.deepcopy(kept.cache))),  # type: ignore[misc]
            Contestant(
                f"snapshot, {size}", scale.repeats, waiting(scale.device, repeated(scale.repeats, manager.snapshot))
            ),
            Contestant(
                f"snapshot and restore, {size}",
                scale.repeats,
                waiting(scale.device, repeated(scale.repeats, lambda kept=manager: _there_and_back(kept))),  # type: ignore[misc]
            ),
        ]
        times_s = interleaved_s(contestants, rounds=scale.rounds)
        deep, *ours = lines_of(contestants, times_s, base=contestants[1].name, unit_s=1e-6)
        lines += [deep, *(replace(line, most_value=MOST_S * 1e6) for line in ours)]
        manager.clear()
    shape = f"{LAYERS} layers with {HEADS} heads of {WIDTH} values in bfloat16"
    remark = f"Caches of {shape}; ratios are to the snapshot of the same length."
    return [Row("snapshot", "keep the KV cache before a question", "µs", lines, [remark])]


def filled(tokens: int, device: str) -> KVCacheManager:
    """Return a manager of random keys and values."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    shape = (1, HEADS, tokens, WIDTH)
    for layer in range(LAYERS):
        keys, values = (torch.randn(shape, device=device).bfloat16() for _ in range(2))
        cache.update(keys, values, layer)
    return KVCacheManager(cache)


def check_shared(manager: KVCacheManager) -> None:
    """Check that a snapshot holds the very tensors, and gives them back after something was appended.

    Raises:
        RuntimeError: it does not.
    """
    before = [tensor for pair in manager.tensors() for tensor in pair]
    manager.snapshot()
    for index, (keys, values) in enumerate(manager.tensors()):
        manager.cache.update(keys[:, :, :1], values[:, :, :1], index)
    manager.restore()
    after = [tensor for pair in manager.tensors() for tensor in pair]
    if [tensor.data_ptr() for tensor in before] != [tensor.data_ptr() for tensor in after]:
        raise RuntimeError("a snapshot copied the cache, or lost it")


def _there_and_back(manager: KVCacheManager) -> None:
    manager.snapshot()
    manager.restore()
