"""LeRobot version 3.0: many episodes share a parquet file and, for each camera, an MP4 file.

`meta/episodes/*/*.parquet` says for each episode which files hold it, and from when to when in each video. The
first frame is `from_timestamp` times the data set's `fps`, rounded, as LeRobot's own tools compute it; rows count
on from there. `meta/tasks.parquet` has `task_index` and, as pandas' index, the instruction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.errors import MediaError, SourceError
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.lerobot_meta import Episode, LeRobotInfo, by_index, read_columns, tasks_of_rows
from pipeline.sources.samples import VideoFrame

_EPISODE_COLUMNS = ("episode_index", "length", "data/chunk_index", "data/file_index")
_VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class LeRobotV3:
    """See `LeRobotLayout`. Raises `SourceError` if a meta file is missing or damaged."""

    def __init__(self, folder: DataFolder, info: LeRobotInfo) -> None:
        self._folder, self._info = folder, info
        self.tasks_file = str(folder.place("meta/tasks.parquet"))
        try:
            self.tasks = self._read_tasks()
            self.episodes = self._read_episodes()
        except (MediaError, KeyError, TypeError, ValueError) as exc:
            raise SourceError(f"{folder.root}: {exc}") from exc
        # The data file that was read last, its rows by episode: neighbours share one.
        self._rows_of: tuple[str, Any] = ("", None)

    def _read_tasks(self) -> dict[int, str]:
        # pandas names the index as its owner did, or not at all.
        names = ("task", "__index_level_0__")
        table = read_columns(self._folder, "meta/tasks.parquet", ["task_index"], optional=names)
        name = names[0] if names[0] in table.column_names else names[1]
        pairs = zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True)
        return {int(index): str(task) for index, task in pairs}

    def _read_episodes(self) -> list[Episode]:
        cameras = [f"videos/{view}/{column}" for view in self._info.features_of("video") for column in _VIDEO_COLUMNS]
        episodes = []
        for path in self._folder.glob("meta/episodes/*/*.parquet"):
            # Statistics fill many more columns.
            episodes += read_columns(self._folder, path, _EPISODE_COLUMNS, optional=cameras).to_pylist()
        return by_index(episodes, self._folder)

    def _video(self, episode: Episode, view: str) -> str | None:
        chunk, file = (episode.get(f"videos/{view}/{column}") for column in ("chunk_index", "file_index"))
        if chunk is None or file is None:
            return None
        return self._info.video_path.format(video_key=view, chunk_index=int(chunk), file_index=int(file))

    def has_video(self, episode: Episode, view: str) -> bool:
        path = self._video(episode, view)
        return path is not None and self._folder.has_file(path)

    def has_rate(self, view: str, fps: float) -> bool:
        """See `LeRobotLayout`. A rate cut off is told from a camera of that rate by which one fits the times."""
        if not self._info.is_rate_cut_off(fps) or self._info.is_rate(fps):
            return self._info.is_rate(fps)
        parts = [(*self._times(episode, view), episode["length"]) for episode in self.episodes]
        told = [
            (end_s - start_s, length) for start_s, end_s, length in parts if start_s is not None and end_s is not None
        ]
        seconds, rows = sum(seconds for seconds, _ in told), sum(length for _, length in told)
        return bool(abs(rows - seconds * self._info.fps) <= abs(rows - seconds * fps))

    def _times(self, episode: Episode, view: str) -> tuple[float | None, float | None]:
        return episode.get(f"videos/{view}/from_timestamp"), episode.get(f"videos/{view}/to_timestamp")

    def first_frame(self, episode: Episode, view: str) -> VideoFrame:
        path = self._video(episode, view)
        start_s, end_s = self._times(episode, view)
        if path is None or start_s is None or end_s is None or not math.isfinite(end_s - start_s):
            raise MediaError(f"episode {episode['episode_index']} has no video of {view}")
        frames = round((end_s - start_s) * self._info.fps)
        if frames < episode["length"]:
            raise MediaError(
                f"episode {episode['episode_index']} has {episode['length']} rows, and {frames} frames of {view}: "
                f"{path} from {start_s} to {end_s} s at {self._info.fps} frames a second"
            )
        return VideoFrame(view, self._folder.place(path), round(start_s * self._info.fps))

    def task_indices(self, episode: Episode) -> list[int]:
        path = self._info.data_path.format(
            chunk_index=int(episode["data/chunk_index"]), file_index=int(episode["data/file_index"])
        )
        if self._rows_of[0] != path:
            self._rows_of = (path, self._read_rows(path))
        rows, index = self._rows_of[1], int(episode["episode_index"])
        begin, end = np.searchsorted(rows["episode_index"].to_numpy(), [index, index + 1])
        return tasks_of_rows(episode, rows.slice(begin, end - begin), self._folder.place(path))

    def _read_rows(self, path: str) -> Any:
        import pyarrow.compute

        table = read_columns(self._folder, path, ["episode_index", "task_index"], optional=["frame_index"])
        return table.take(pyarrow.compute.sort_indices(table["episode_index"]))  # stable
