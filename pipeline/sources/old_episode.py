"""VLA episodes of the old format: one `data.pkl` with actions and lists of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from pipeline.errors import MediaError
from pipeline.sources.episode import stated_instruction
from pipeline.sources.safe_pickle import load_plain_pickle
from pipeline.sources.samples import ImageFile
from pipeline.sources.vlm_index import each_once, old_format_samples, old_format_vlm_idx


class OldEpisode:
    """An episode folder with `data.pkl`. Raises `MediaError` if that cannot be read or lacks what the format needs."""

    def __init__(self, folder: Path, *, vlm_reuse_count: int, horizon: int) -> None:
        self.folder, self.name = folder, folder.name
        self._vlm_reuse_count, self._horizon = vlm_reuse_count, horizon
        data = load_plain_pickle(folder / "data.pkl")
        images = data.get("image") if isinstance(data, dict) else None
        images = {} if images is None else images
        if not isinstance(data, dict) or data.get("action") is None or not isinstance(images, dict):
            raise MediaError("data.pkl needs a dict with `action` and `image {view: [path]}`")
        self.actions = _real_rows(data["action"])
        self.sensor_data = data.get("sensor_data")  # None, an array, or {fpi, force}, as it was recorded
        self.num_rows = len(self.actions)
        odd = [view for view, paths in images.items() if not isinstance(paths, list | tuple | np.ndarray)]
        if odd:
            raise MediaError(f"data.pkl: image {odd[0]!r} is no list of paths")
        self._images = {str(view): list(paths) for view, paths in images.items()}
        self.views = tuple(sorted(view for view, paths in self._images.items() if paths))
        self.own_instruction = stated_instruction(data.get("instruction"))

    def num_samples(self) -> int:
        """Return how many samples the training data set makes of the episode."""
        return old_format_samples(self.num_rows, horizon=self._horizon)

    def vlm_idx(self, sample: int) -> int:
        """Return the step (in rows) that a sample uses."""
        return old_format_vlm_idx(sample, vlm_reuse_count=self._vlm_reuse_count, num_rows=self.num_rows)

    def vlm_indices(self) -> Iterator[int]:
        """Yield the steps that the samples need, ascending, each once."""
        return each_once(map(self.vlm_idx, range(self.num_samples())))

    def image(self, view: str, vlm_idx: int) -> ImageFile:
        """Return the image at the list index `vlm_idx`, clamped to the list."""
        paths = self._images[view]
        return ImageFile(view, self._resolve(str(paths[min(vlm_idx, len(paths) - 1)])))

    def _resolve(self, stated: str) -> Path:
        """Find an image whose path was written on another machine: below the episode, by its longest known tail."""
        # A Windows path also splits at "/", so this reads the paths of both kinds of machine.
        parts = PureWindowsPath(stated).parts
        if self.folder.name in parts:
            inside = parts[len(parts) - parts[::-1].index(self.folder.name) :]
            tails = [inside, *(parts[-count:] for count in (3, 2, 1))]
        else:
            tails = [parts[-count:] for count in (3, 2, 1)]
        candidates = [self.folder / stated, *(self.folder.joinpath(*tail) for tail in tails if tail)]
        # `Path.is_file` raises where a name is too long.
        return next((path for path in candidates if os.path.isfile(path)), candidates[0])


def _real_rows(value: Any) -> np.ndarray:
    try:
        rows = np.asarray(value)
    except (TypeError, ValueError) as exc:
        raise MediaError(f"data.pkl: action cannot be stacked: {exc}") from exc
    if rows.ndim == 0 or rows.dtype.kind not in "biuf":
        raise MediaError(f"data.pkl: action is {rows.dtype} {list(rows.shape)}; rows of real numbers are expected")
    return rows
