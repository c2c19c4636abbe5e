"""A folder of videos, at any depth."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.sources.archives import is_archive, unpack_hint
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.media_path import MediaPath
from pipeline.sources.samples import IgnoredFile, VideoSample
from pipeline.sources.video_ids import is_bare_stem, is_video, repeated_stems, video_id


class VideoFolder:
    """Every file with a known video extension below `root`, in path order.

    Raises:
        SourceError: the folder is missing, holds no video, or two of its videos have one id (`a.mp4` beside `a.mkv`).
    """

    def __init__(self, root: MediaPath, *, dataset: str | None = None) -> None:
        self._folder = DataFolder(root)
        self.dataset = self._folder.name if dataset is None else dataset
        self._ignored: list[IgnoredFile] = []
        self._paths = [path for path in self._folder.files() if self._takes(path)]
        if not self._paths:
            hint = unpack_hint(self._folder)
            raise SourceError(
                f"{self._folder.root} holds no video ({len(self._ignored)} other files)" + (f"; {hint}" if hint else "")
            )
        self._repeated = repeated_stems(self._paths)
        self._refuse_doubles()

    def _takes(self, relative_path: str) -> bool:
        if any(part.startswith(".") for part in relative_path.split("/")):
            reason = "hidden"
        elif is_video(relative_path):
            return True
        else:
            reason = "not a known video extension"
            if is_archive(relative_path):
                reason = "an archive, which is not read; unpack it and build again"
        self._ignored.append(IgnoredFile(self._folder.place(relative_path), reason))
        return False

    def _refuse_doubles(self) -> None:
        first_with: dict[str, str] = {}
        for path in self._paths:
            other = first_with.setdefault(video_id(path, repeated=self._repeated), path)
            if other != path:
                raise SourceError(
                    f"two videos would have the id {video_id(path, repeated=self._repeated)!r}: "
                    f"{self._folder.place(other)} and {self._folder.place(path)}; rename or move one of them"
                )

    def __iter__(self) -> Iterator[VideoSample]:
        for path in self._paths:
            name = video_id(path, repeated=self._repeated)
            has_bare_stem = is_bare_stem(path, repeated=self._repeated)
            yield VideoSample(self.dataset, name, self._folder.place(path), path, has_bare_stem=has_bare_stem)

    def ignored(self) -> list[IgnoredFile]:
        """Return the hidden files and those with other extensions, in path order."""
        return list(self._ignored)
