"""Video-MME from its own parquet or JSON, or from VLMEvalKit's TSV: each video once, not each question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import SourceError
from pipeline.sources.annotations import SUFFIXES, read_rows
from pipeline.sources.folder_scan import require_folder
from pipeline.sources.samples import IgnoredFile, VideoSample

DATASET = "Video-MME"

# Where benchmarks and the harnesses unpack the videos, in the order in which they are tried.
FOLDERS = ("video", "videos", "data", ".")
EXTENSIONS = ("mp4", "MP4", "mkv", "webm", "mov")

# `videoID` is the id on the video platform; `video_id` ("001") numbers the videos and names no file.
ID_COLUMNS = ("videoID", "video")
PATH_COLUMN = "video_path"


class VideoMME:
    """The videos that the annotations name, in the order in which they first appear.

    A video whose file is missing is a sample with a problem, so that the report names it.

    Raises:
        SourceError: the data folder or the annotations are missing or unreadable, a row names no video, or one id
            stands for two different paths.
    """

    def __init__(self, root: Path, annotations: Path | None = None, *, dataset: str | None = None) -> None:
        self._root = require_folder(root)
        self.dataset = DATASET if dataset is None else dataset
        self._annotations = _find_annotations(self._root) if annotations is None else annotations
        self._paths = self._unique_videos(read_rows(self._annotations, columns=(*ID_COLUMNS, PATH_COLUMN)))

    def _unique_videos(self, rows: list[dict[str, Any]]) -> dict[str, str | None]:
        paths: dict[str, str | None] = {}
        for number, row in enumerate(rows, start=1):
            name = next((str(row[column]) for column in ID_COLUMNS if column in row), None)
            if name is None:
                raise SourceError(f"row {number} of {self._annotations} has no {' or '.join(ID_COLUMNS)}")
            if "/" in name or "\\" in name or name in (".", ".."):
                raise SourceError(f"row {number} of {self._annotations}: the video id {name!r} is no file name")
            path = row.get(PATH_COLUMN)
            if paths.setdefault(name, path) != path:
                raise SourceError(
                    f"{self._annotations} gives the video {name!r} two paths, {paths[name]!r} and {path!r}"
                )
        return paths

    def __iter__(self) -> Iterator[VideoSample]:
        for name, stated in self._paths.items():
            places = [*([PurePosixPath(stated)] if stated else []), *_places(name)]
            found = next((place for place in places if self._holds(place)), None)
            if found is not None:
                yield VideoSample(self.dataset, name, self._root / found, found.as_posix())
                continue
            problem = (
                f"no file: looked for {places[0]} and {{{','.join(FOLDERS)}}}/{name}.{{{','.join(EXTENSIONS)}}} "
                f"below {self._root}"
            )
            yield VideoSample(self.dataset, name, self._root / places[0], places[0].as_posix(), problem=problem)

    def _holds(self, place: PurePosixPath) -> bool:
        # A path from somebody's annotations must not lead out of the data folder.
        if place.is_absolute() or ".." in place.parts:
            return False
        return (self._root / place).is_file()

    def ignored(self) -> list[IgnoredFile]:
        """Return nothing: files that no annotation names are not looked for."""
        return []


def _places(name: str) -> list[PurePosixPath]:
    return [PurePosixPath(folder, f"{name}.{extension}") for folder in FOLDERS for extension in EXTENSIONS]


def _find_annotations(root: Path) -> Path:
    """Return the one annotation file in the data folder or in its `videomme` folder."""
    folders = [folder for folder in (root, root / "videomme") if folder.is_dir()]
    found = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(root)) for path in found) or "none"
        raise SourceError(f"{root} has {len(found)} annotation files ({names}); pass the right one as --annotations")
    return found[0]
