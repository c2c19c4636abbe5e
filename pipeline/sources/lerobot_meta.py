"""What every version of a LeRobot data set offers, and the file `meta/info.json` that tells the version."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from pipeline.errors import MediaError, SourceError
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.media_path import MediaPath
from pipeline.sources.samples import VideoFrame

READ_VERSIONS = ("v2.0", "v2.1", "v3.0")

Episode = dict[str, Any]  # as the data set's meta files describe it; `episode_index` and `length` at least


class LeRobotLayout(Protocol):
    """One data set's episodes and files, in the layout of its version."""

    episodes: list[Episode]  # by episode_index
    tasks: dict[int, str]  # task_index: instruction
    tasks_file: str

    def has_video(self, episode: Episode, view: str) -> bool:
        """Return whether the camera's file of this episode is there."""
        ...

    def has_rate(self, view: str, fps: float) -> bool:
        """Return whether a camera of `fps` frames a second by `info.json` has one frame for each row."""
        ...

    def first_frame(self, episode: Episode, view: str) -> VideoFrame:
        """Return the frame of the episode's first row. Raises `MediaError` if the meta files contradict it."""
        ...

    def task_indices(self, episode: Episode) -> list[int]:
        """Return the task of each row of the episode. Raises `MediaError`, also if the rows are not its frames."""
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
    video_fps: dict[str, float]  # of the cameras that tell it

    def is_rate(self, fps: float) -> bool:
        """Return whether a camera's frames a second are the data set's; 29.97 stands for 30000 / 1001."""
        return math.isclose(fps, self.fps, rel_tol=1e-5)

    def is_rate_cut_off(self, fps: float) -> bool:
        """Return whether they are its whole part, as LeRobot writes a video's rate."""
        return fps == int(self.fps)

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
            video_fps=_video_fps(info["features"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SourceError(f"{folder.root} is no LeRobot data set: {path}: {exc!r}") from exc
    if found.version not in READ_VERSIONS:
        raise SourceError(
            f"{folder.root} is a LeRobot data set of version {found.version}; {', '.join(READ_VERSIONS)} are read"
        )
    return found


def _video_fps(features: dict[str, Any]) -> dict[str, float]:
    # The first sets say `video_info`.
    told = ((view, kind.get(place) or {}) for view, kind in features.items() for place in ("video_info", "info"))
    return {view: float(facts["video.fps"]) for view, facts in told if facts.get("video.fps") is not None}


def read_columns(folder: DataFolder, path: str, required: Sequence[str], *, optional: Sequence[str] = ()) -> Any:
    """Return the columns of a parquet file as a table, those of `optional` that it has.

    Indices and lengths are int64, timestamps float64; none of `required` is null anywhere. Raises `MediaError`.
    """
    import pyarrow.parquet

    try:
        with folder.place(path).open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            names = parquet.schema_arrow.names
            wanted = [name for name in (*required, *optional) if name in names]
            table = parquet.read(columns=wanted, use_threads=False)  # which may not outlive Python's file
        for place, name in enumerate(table.column_names):
            kind = _kind(name)
            if kind is not None:
                table = table.set_column(place, name, table[name].cast(kind))
    # Arrow's own errors are of several builtin kinds: what is no number, what is no index.
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as exc:
        raise MediaError(f"{folder.place(path)} cannot be read: {exc}") from exc
    missing = sorted(set(required) - set(table.column_names))
    if missing:
        raise MediaError(f"{folder.place(path)} has no column {', '.join(missing)}")
    for name in required:
        if table[name].null_count:
            raise MediaError(f"{folder.place(path)} has rows without {name}")
    return table


def _kind(column: str) -> str | None:
    if column == "length" or column.endswith("_index"):
        return "int64"
    return "float64" if column.endswith("_timestamp") else None


def by_index(episodes: Iterable[Episode], folder: DataFolder) -> list[Episode]:
    """Return a data set's episodes in order of their `episode_index`, which names their features.

    Raises:
        SourceError: two have the same one.
    """
    ordered = sorted(episodes, key=lambda episode: int(episode["episode_index"]))
    for one, next_one in pairwise(ordered):
        if one["episode_index"] == next_one["episode_index"]:
            raise SourceError(
                f"{folder.place('meta')} lists episode_index {one['episode_index']} twice; one would have the features "
                "of the other"
            )
    return ordered


def tasks_of_rows(episode: Episode, rows: Any, path: MediaPath) -> list[int]:
    """Return the task of each of an episode's rows, which are a table of `task_index` and perhaps `frame_index`.

    Raises:
        MediaError: there are more or fewer than the meta files say, or row i is another frame than i: pictures are
            taken by row, and features looked up by frame. Some sets of version 2.0 count no frames.
    """
    index = episode["episode_index"]
    if rows.num_rows != episode["length"]:
        raise MediaError(
            f"episode {index} has {episode['length']} rows by the meta files, and {rows.num_rows} in {path}"
        )
    if "frame_index" in rows.column_names:
        for row, frame in enumerate(rows["frame_index"].to_pylist()):
            if frame != row:
                raise MediaError(f"row {row} of episode {index} is frame {frame} by its frame_index in {path}")
    tasks: list[int] = rows["task_index"].to_pylist()
    return tasks
