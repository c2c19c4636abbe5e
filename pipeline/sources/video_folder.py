"""A folder of videos, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.folder_scan import files_below, require_folder
from pipeline.sources.samples import IgnoredFile, VideoSample
from pipeline.sources.video_ids import is_video, repeated_stems, video_id


class VideoFolder:
    """Every file with a known video extension below `root`, in path order.

    Raises:
        SourceError: the folder is missing, holds no video, or two of its videos have one id (`a.mp4` beside `a.mkv`).
    """

    def __init__(self, root: Path, *, dataset: str | None = None) -> None:
        self._root = require_folder(root)
        self.dataset = self._root.name if dataset is None else dataset
        self._ignored: list[IgnoredFile] = []
        self._paths = [path for path in self._relative_paths() if self._takes(path)]
        if not self._paths:
            raise SourceError(f"{self._root} holds no video ({len(self._ignored)} other files)")
        self._repeated = repeated_stems(self._paths)
        self._refuse_doubles()

    def _relative_paths(self) -> Iterator[str]:
        return (path.relative_to(self._root).as_posix() for path in files_below(self._root))

    def _takes(self, relative_path: str) -> bool:
        if any(part.startswith(".") for part in relative_path.split("/")):
            reason = "hidden"
        elif not is_video(relative_path):
            reason = "not a known video extension"
        else:
            return True
        self._ignored.append(IgnoredFile(self._root / relative_path, reason))
        return False

    def _refuse_doubles(self) -> None:
        first_with: dict[str, str] = {}
        for path in self._paths:
            other = first_with.setdefault(video_id(path, repeated=self._repeated), path)
            if other != path:
                raise SourceError(
                    f"two videos would have the id {video_id(path, repeated=self._repeated)!r}: "
                    f"{self._root / other} and {self._root / path}; rename or move one of them"
                )

    def __iter__(self) -> Iterator[VideoSample]:
        for path in self._paths:
            name = video_id(path, repeated=self._repeated)
            yield VideoSample(self.dataset, name, self._root / path, path)

    def ignored(self) -> list[IgnoredFile]:
        """Return the hidden files and those with other extensions, in path order."""
        return list(self._ignored)
