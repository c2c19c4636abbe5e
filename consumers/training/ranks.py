"""What the processes of one training tell each other when they open their data: unequal ones would stop for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from pipeline.errors import SourceError


@dataclass(frozen=True)
class Opened:
    """What one process opened, or why it could not."""

    rank: int
    world_size: int
    error: str | None = None
    num_samples: int = 0
    left_out: int = 0  # episodes
    settings: Mapping[str, Any] = field(default_factory=dict)  # what every process has to have alike
    recipes: Sequence[str | None] = ()  # of each episode, as a fingerprint; None where none is noted


def require_alike(own: Opened) -> None:
    """Compare what the processes of torch's default group opened; nothing where it is not up. All of them call this.

    Raises:
        SourceError: another process could not open its data, or has other samples, settings, recipes, or not the rank
            and the world size that make one training; in every process alike, but for the one that could not.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    everyone: list[Opened] = gathered
    failed = [f"process {number}: {one.error}" for number, one in enumerate(everyone) if one.error is not None]
    if failed:
        if own.error is not None:
            return
        raise SourceError("other processes of this training cannot open their data\n" + "\n".join(failed))
    # Not the group's own size: processes that share one model share a rank here.
    ranks, sizes = {one.rank for one in everyone}, {one.world_size for one in everyone}
    if len(sizes) > 1 or ranks != set(range(own.world_size)):
        told = ", ".join(f"process {n}: rank {one.rank} of {one.world_size}" for n, one in enumerate(everyone))
        raise SourceError(f"ranks and world sizes make no whole ({told}); give each loader its own rank, and one size")
    if any((one.num_samples, one.settings) != (own.num_samples, own.settings) for one in everyone):
        told = ", ".join(f"rank {one.rank}: {one.num_samples} samples{_left_out(one)}" for one in everyone)
        for name, value in own.settings.items():
            if any(one.settings[name] != value for one in everyone):
                told += f"; {name}: " + ", ".join(str(one.settings[name]) for one in everyone)
        raise SourceError(
            f"the processes have different samples or settings ({told}): they do not see the same episodes and one "
            "cache, something was added, evicted or left out while they opened it, or their options differ; begin "
            "again when it is at rest"
        )
    for number, noted in enumerate(zip(*(one.recipes for one in everyone), strict=True)):
        if len(set(noted) - {None}) > 1:
            told = ", ".join(f"rank {one.rank}: {recipe}" for one, recipe in zip(everyone, noted, strict=True))
            raise SourceError(
                f"the processes' caches hold features of different recipes, first of episode {number} ({told}); give "
                "all of them one cache, or copies of one"
            )


def _left_out(one: Opened) -> str:
    return f" ({one.left_out} episodes left out)" if one.left_out else ""
