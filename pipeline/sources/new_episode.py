"""VLA episodes of the new format: `metadata.json`, timestamped images and robot states at a fixed rate."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import MediaError
from pipeline.sources.array_files import StoredArray, array_in
from pipeline.sources.episode import stated_instruction
from pipeline.sources.samples import ImageFile
from pipeline.sources.vlm_index import action_interval, each_once, new_format_samples, new_format_vlm_idx

# `ZED_41182735_left_1762725445.926.jpg` or `1762725445.926.jpg`: the last number of the stem, in seconds.
_TIMESTAMP = re.compile(r"(\d+(?:\.\d+)?)$")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class NewEpisode:
    """An episode folder with `metadata.json`. Raises `MediaError` if that cannot be read or is of the wrong shape.

    Its images are listed when they are first asked for: who reads cached features never does.
    """

    def __init__(self, folder: Path, *, vlm_reuse_count: int, action_expert_hz: float) -> None:
        self.folder, self.name = folder, folder.name
        self._vlm_reuse_count = vlm_reuse_count
        metadata = _read_metadata(folder / "metadata.json")
        self.robot_hz, self.sensor_hz = _rate(metadata, "robot_hz", 100.0), _rate(metadata, "sensor_hz", 650.0)
        self.interval = action_interval(robot_hz=self.robot_hz, action_expert_hz=action_expert_hz)
        self.own_instruction = stated_instruction(metadata.get("instruction"))
        stated = metadata.get("camera_views")
        self._stated_views = frozenset(map(str, stated)) if isinstance(stated, list) else None

    @property
    def views(self) -> tuple[str, ...]:
        """Camera names, sorted. Raises `MediaError` if a view that `metadata.json` lists has no images."""
        return tuple(sorted(self._images))

    @cached_property
    def _images(self) -> dict[str, tuple[np.ndarray, list[Path]]]:
        """View -> (times in seconds, paths), both in time order; equal times in order of their names."""
        parent = self.folder / "images" if (self.folder / "images").is_dir() else self.folder
        wanted = self._stated_views
        found = {}
        for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
            timed = sorted(
                (float(match[1]), path.name, path)
                for path in folder.iterdir()
                if path.suffix.lower() in _IMAGE_SUFFIXES and (match := _TIMESTAMP.search(path.stem))
            )
            if timed and (wanted is None or folder.name in wanted):
                found[folder.name] = (np.array([time_s for time_s, _, _ in timed]), [path for _, _, path in timed])
        missing = sorted((wanted or frozenset()) - set(found))
        if missing:
            raise MediaError(f"metadata.json lists the views {', '.join(missing)}, which have no images")
        return found

    @cached_property
    def num_poses(self) -> int:
        """How many robot states were recorded."""
        archive, table = self.folder / "robot_states.npz", self.folder / "robot_states.csv"
        if archive.is_file():
            states = array_in(archive, "robot_states")
            if states is None:
                raise MediaError("robot_states.npz has no array 'robot_states'")
            return states.shape[0]
        if table.is_file():
            try:
                with table.open(newline="") as file:
                    return sum(1 for _ in csv.DictReader(file))
            except (OSError, ValueError, csv.Error) as exc:
                raise MediaError(f"{table.name} cannot be read: {exc!r}") from exc
        raise MediaError("neither robot_states.npz nor robot_states.csv")

    def sensor_files(self) -> list[Path]:
        """Return the sensor's archives (`sensor_data_<ts>.npz`, `sensor_data.npz`), by name."""
        return sorted(self.folder.glob("sensor_data*.npz"))

    @cached_property
    def start_s(self) -> float:
        """The time of pose 0: the first sensor timestamp, else that of the earliest image. Raises `MediaError`."""
        for path in self.sensor_files():
            times: StoredArray | None = array_in(path, "timestamps")
            if times is not None and all(times.shape):
                start_s = float(times.rows(0, 1).ravel()[0])
                if not math.isfinite(start_s):
                    # Every image would be equally near to it.
                    raise MediaError(f"{path.name}: the first of its timestamps is {start_s}, and no time")
                return start_s
        if not self._images:
            raise MediaError("neither sensor timestamps nor images tell when the episode began")
        return min(float(times_s[0]) for times_s, _ in self._images.values())

    def num_samples(self) -> int:
        """Return how many samples the training data set makes of the episode."""
        return new_format_samples(self.num_poses, interval=self.interval)

    def vlm_idx(self, sample: int) -> int:
        """Return the step (in poses) that a sample uses."""
        return new_format_vlm_idx(sample, vlm_reuse_count=self._vlm_reuse_count, interval=self.interval)

    def vlm_indices(self) -> Iterator[int]:
        """Yield the steps that the samples need, ascending, each once."""
        return each_once(map(self.vlm_idx, range(self.num_samples())))

    def image(self, view: str, vlm_idx: int) -> ImageFile:
        """Return the image nearest in time to pose `vlm_idx`; of two equally near ones the earlier."""
        times, paths = self._images[view]
        distance = np.abs(times - (self.start_s + vlm_idx / self.robot_hz))
        # argmin takes the first of equal values, and the times ascend.
        return ImageFile(view, paths[int(distance.argmin())])


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise MediaError(f"metadata.json cannot be read: {exc}") from exc
    if not isinstance(metadata, dict):
        raise MediaError("metadata.json must hold an object")
    return metadata


def _rate(metadata: dict[str, Any], name: str, default: float) -> float:
    """Return a rate in Hz, which may have been written as text."""
    try:
        rate = float(metadata.get(name, default))
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    # The upper bound keeps what is computed of it finite.
    if not 0 < rate < 1e9:
        raise MediaError(f"metadata.json: {name} is {metadata[name]!r}, and must be a rate in Hz above 0")
    return rate
