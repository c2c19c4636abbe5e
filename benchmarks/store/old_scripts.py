"""What hand-made caches do, restated: one shared temporary name, and a rescan of every file after every save."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks.store.rescan import enforce_limit


class OldScripts:
    """`torch.save` to one name and rename; then list and stat all files, and delete the oldest over the limit."""

    name = "old scripts' algorithm"

    def __init__(self, folder: Path, *, limit_bytes: int = 2**60) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limit_bytes = limit_bytes

    def path(self, index: int) -> Path:
        return self._folder / f"{index}.pt"

    def write(self, index: int, feature: torch.Tensor) -> None:
        temp = self._folder / "cache.pt.tmp"
        torch.save(feature.clone(), temp)
        os.replace(temp, self.path(index))
        enforce_limit(self._folder, self._limit_bytes)

    def read(self, index: int) -> torch.Tensor | None:
        path = self.path(index)
        if not path.exists():
            return None
        feature: torch.Tensor = torch.load(path, map_location="cpu", weights_only=True)
        return feature
