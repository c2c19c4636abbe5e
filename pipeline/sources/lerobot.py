"""LeRobot data sets of version 2.0 and 2.1: one parquet and one MP4 per camera for each episode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import MediaError, SourceError
from pipeline.sources.folder_scan import require_folder
from pipeline.sources.samples import IgnoredFile, StepSample, VideoFrame
from pipeline.sources.vlm_index import lerobot_vlm_idx


class LeRobotV2:
    """The steps of every episode, in episode order, named `<dataset>_episode_000007`.

    A step's images are the frames of the episode's videos at the step's row: timestamps of real sets are off by one.

    Raises:
        SourceError: the folder is no LeRobot v2 data set, no camera has files, or a view asked for is not there.
    """

    def __init__(
        self,
        root: Path,
        *,
        dataset: str | None = None,
        views: Sequence[str] | None = None,
        instruction: str | None = None,
        vlm_reuse_count: int = 3,
    ) -> None:
        self._root = require_folder(root)
        self.dataset = self._root.name if dataset is None else dataset
        self._instruction, self._vlm_reuse_count = instruction, vlm_reuse_count
        self._info = self._read_info()
        self._tasks = {row["task_index"]: row["task"] for row in self._read_lines("tasks.jsonl")}
        self._episodes = sorted(self._read_lines("episodes.jsonl"), key=lambda row: int(row["episode_index"]))
        if not self._episodes:
            raise SourceError(f"{self._root / 'meta' / 'episodes.jsonl'} lists no episode")
        self._ignored: list[IgnoredFile] = []
        self._views = self._choose_views(views)

    def _read_info(self) -> dict[str, Any]:
        path = self._root / "meta" / "info.json"
        try:
            info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = str(info["codebase_version"])
            _ = info["data_path"], info["features"], info["chunks_size"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise SourceError(f"{self._root} is no LeRobot data set: {path}: {exc!r}") from exc
        if not version.startswith("v2."):
            raise SourceError(f"{self._root} is a LeRobot data set of version {version}; v2.0 and v2.1 are read so far")
        return info

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        path = self._root / "meta" / name
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as exc:
            raise SourceError(f"{path} cannot be read: {exc}") from exc

    def _choose_views(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        cameras = sorted(name for name, kind in self._info["features"].items() if kind.get("dtype") == "video")
        stills = sorted(name for name, kind in self._info["features"].items() if kind.get("dtype") == "image")
        # The first episode decides: info.json of real sets lists cameras that were never recorded.
        with_files = [name for name in cameras if self._video_path(self._episodes[0], name).is_file()]
        for name in sorted({*cameras, *stills} - {*with_files}):
            reason = (
                "images inside parquet files are not read" if name in stills else "info.json lists it without files"
            )
            self._ignored.append(IgnoredFile(self._root / "videos" / name, reason))
        missing = sorted(set(wanted or ()) - set(with_files))
        if missing or not with_files:
            asked = f"no view {', '.join(missing)}" if missing else "no camera has video files"
            raise SourceError(f"{self._root}: {asked}; there are {', '.join(with_files) or 'none'}")
        return tuple(sorted(set(wanted))) if wanted else tuple(with_files)

    def _place(self, template: str, episode: dict[str, Any], **more: str) -> Path:
        index = int(episode["episode_index"])
        chunk = index // int(self._info["chunks_size"])
        return self._root / template.format(episode_chunk=chunk, episode_index=index, **more)

    def _video_path(self, episode: dict[str, Any], view: str) -> Path:
        return self._place(str(self._info.get("video_path") or ""), episode, video_key=view)

    def __iter__(self) -> Iterator[StepSample]:
        for episode in self._episodes:
            name = f"{self.dataset}_episode_{int(episode['episode_index']):06d}"
            try:
                instructions = self._instructions(episode)
            except MediaError as exc:
                yield StepSample(name, 0, (), "", problem=str(exc))
                continue
            videos = [(view, self._video_path(episode, view)) for view in self._views]
            for row in range(len(instructions)):
                # The first row of a step stands for the rows that share it.
                if lerobot_vlm_idx(row, vlm_reuse_count=self._vlm_reuse_count) != row:
                    continue
                images = tuple(VideoFrame(view, path, row) for view, path in videos)
                yield StepSample(name, row, images, instructions[row])

    def _instructions(self, episode: dict[str, Any]) -> list[str]:
        """Return the instruction of every row of an episode, and with it how many rows there are."""
        import pyarrow.parquet

        path = self._place(str(self._info["data_path"]), episode)
        try:
            rows = pyarrow.parquet.read_table(path, columns=["task_index"])["task_index"].to_pylist()
        except (OSError, ValueError, KeyError) as exc:
            raise MediaError(f"{path} cannot be read: {exc}") from exc
        if self._instruction is not None:
            return [self._instruction] * len(rows)
        unknown = sorted(set(rows) - set(self._tasks))
        if unknown:
            raise MediaError(f"{path} has task_index {unknown[0]}, which tasks.jsonl does not name")
        return [str(self._tasks[task]) for task in rows]

    def ignored(self) -> list[IgnoredFile]:
        """Return the cameras that `info.json` lists and that cannot be read, by name."""
        return list(self._ignored)
