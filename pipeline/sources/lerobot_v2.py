"""LeRobot versions 2.0 and 2.1: each episode has a parquet file of its own, and one MP4 for each camera.

Both keep `meta/episodes.jsonl` and `meta/tasks.jsonl`; they differ in statistics alone. Chunks hold `chunks_size`
episodes.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import SourceError
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.lerobot_meta import Episode, LeRobotInfo, by_index, read_columns, tasks_of_rows
from pipeline.sources.samples import VideoFrame


class LeRobotV2:
    """See `LeRobotLayout`. Raises `SourceError` if a meta file is missing or damaged."""

    def __init__(self, folder: DataFolder, info: LeRobotInfo) -> None:
        self._folder, self._info = folder, info
        self.tasks_file = str(folder.place("meta/tasks.jsonl"))
        tasks = self._lines("tasks.jsonl", "task_index", "task")
        self.tasks = {row["task_index"]: str(row["task"]) for row in tasks}
        episodes = self._lines("episodes.jsonl", "episode_index", "length")
        self.episodes = by_index(episodes, folder)

    def _lines(self, name: str, *required: str) -> list[dict[str, Any]]:
        """Return the objects of a file of lines, which have the columns `required`: whole numbers but for the task."""
        try:
            text = self._folder.read_bytes(f"meta/{name}").decode("utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            for row in rows:
                row |= {name: row[name] if name == "task" else _whole(row[name]) for name in required}
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as exc:
            raise SourceError(f"{self._folder.place(f'meta/{name}')} cannot be read: {exc!r}") from exc
        return rows

    def _place(self, template: str, episode: Episode, **more: str) -> str:
        index = int(episode["episode_index"])
        return template.format(episode_chunk=index // self._info.chunks_size, episode_index=index, **more)

    def _video(self, episode: Episode, view: str) -> str:
        return self._place(self._info.video_path, episode, video_key=view)

    def has_video(self, episode: Episode, view: str) -> bool:
        return self._folder.has_file(self._video(episode, view))

    def has_rate(self, view: str, fps: float) -> bool:
        # Each video begins with its episode, so that no rate places a frame.
        return self._info.is_rate(fps) or self._info.is_rate_cut_off(fps)

    def first_frame(self, episode: Episode, view: str) -> VideoFrame:
        return VideoFrame(view, self._folder.place(self._video(episode, view)), 0)

    def task_indices(self, episode: Episode) -> list[int]:
        path = self._place(self._info.data_path, episode)
        rows = read_columns(self._folder, path, ["task_index"], optional=["frame_index"])
        return tasks_of_rows(episode, rows, self._folder.place(path))


def _whole(value: Any) -> int:
    number = int(value)
    if number != float(value):
        raise ValueError(f"{value!r} is no whole number")
    return number
