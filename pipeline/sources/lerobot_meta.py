"""What every version of a LeRobot data set offers, and the file `meta/info.json` that tells the version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import MediaError, SourceError
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.samples import VideoFrame

READ_VERSIONS = ("v2.0", "v2.1", "v3.0")

Episode = dict[str, Any]  # as the data set's meta files describe it; `episode_index` at least


class LeRobotLayout(Protocol):
    """One data set's episodes and files, in the layout of its version."""

    episodes: list[Episode]  # by episode_index
    tasks: dict[int, str]  # task_index: instruction
    tasks_file: str

    def has_video(self, episode: Episode, view: str) -> bool:
        """Return whether the camera's file of this episode is there."""
        ...

    def first_frame(self, episode: Episode, view: str) -> VideoFrame:
        """Return the frame of the episode's first row. Raises `MediaError` if the meta files contradict it."""
        ...

    def task_indices(self, episode: Episode) -> list[int]:
        """Return the task of each row of the episode. Raises `MediaError` if its rows cannot be read."""
        ...


@dataclass(frozen=True)
class LeRobotInfo:
    """`meta/info.json`."""

    version: str
    fps: float
    data_path: str  # templates of relative paths
    video_path: str
    chunks_size: int
    features: dict[str, Any]

    def features_of(self, dtype: str) -> list[str]:
        """Return the names of the features of one kind ("video", "image"), sorted."""
        return sorted(name for name, kind in self.features.items() if kind.get("dtype") == dtype)


def read_info(folder: DataFolder) -> LeRobotInfo:
    """Return what `meta/info.json` says.

    Raises:
        SourceError: it is missing, damaged, or of a version that is not read.
    """
    path = folder.place("meta/info.json")
    try:
        info = json.loads(folder.read_bytes("meta/info.json"))
        found = LeRobotInfo(
            version=str(info["codebase_version"]),
            fps=float(info["fps"]),
            data_path=str(info["data_path"]),
            video_path=str(info.get("video_path") or ""),
            chunks_size=int(info["chunks_size"]),
            features=dict(info["features"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SourceError(f"{folder.root} is no LeRobot data set: {path}: {exc!r}") from exc
    if found.version not in READ_VERSIONS:
        raise SourceError(
            f"{folder.root} is a LeRobot data set of version {found.version}; {', '.join(READ_VERSIONS)} are read"
        )
    return found


def read_columns(folder: DataFolder, path: str, columns: list[str] | None = None) -> Any:
    """Return a parquet file as a table, or those of `columns` that it has. Raises `MediaError`."""
    import pyarrow.parquet

    try:
        with folder.place(path).open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            names = parquet.schema_arrow.names
            return parquet.read(columns=None if columns is None else [name for name in columns if name in names])
    except (OSError, ValueError, KeyError) as exc:
        raise MediaError(f"{folder.place(path)} cannot be read: {exc}") from exc
