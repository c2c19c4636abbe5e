"""VLA episode folders of the old and of the new format, at any depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.errors import MediaError, SourceError
from pipeline.sources.episode import Episode, chosen_views, instruction_of
from pipeline.sources.folder_scan import files_below, require_folder
from pipeline.sources.new_episode import NewEpisode
from pipeline.sources.old_episode import OldEpisode
from pipeline.sources.samples import IgnoredFile, StepSample

# The file that makes a folder an episode of its format.
OLD_MARKER, NEW_MARKER = "data.pkl", "metadata.json"
Format = Literal["old", "new"]


def format_of(folder: Path) -> Format:
    """Return the format of an episode's folder, for builds and readers alike.

    Raises:
        MediaError: it is no episode, or one of both formats, whose steps mean other moments.
    """
    require_one_format(folder)
    if (folder / NEW_MARKER).is_file():
        return "new"
    if (folder / OLD_MARKER).is_file():
        return "old"
    raise MediaError(f"{folder} is no episode: it has neither {NEW_MARKER} nor {OLD_MARKER}")


def require_one_format(folder: Path) -> None:
    """Refuse a folder in which the files of both formats lie. Raises `MediaError`, with both."""
    if (folder / OLD_MARKER).is_file() and (folder / NEW_MARKER).is_file():
        raise MediaError(
            f"{folder} has both {OLD_MARKER} (old format) and {NEW_MARKER} (new format), whose steps are other "
            "moments; move one of them out of the folder"
        )


def refuse_doubles(folders: Iterable[Path]) -> None:
    """Refuse two different episode folders of one name, which names their features.

    Raises:
        SourceError: names both.
    """
    first_with: dict[str, Path] = {}
    for folder in folders:
        other = first_with.setdefault(folder.name, folder)
        if other != folder:
            raise SourceError(
                f"two episodes have the name {folder.name!r}, which names their features: {other} and {folder}; "
                "rename one, or build them into two stores"
            )


class VLAEpisodes:
    """The steps of every episode below `root` (or of `root`, if it is one), episode by episode in path order.

    An episode that cannot be read is one sample with a problem; the others are not affected.

    Raises:
        SourceError: the folder is missing, holds no episode, or two episodes have one name.
    """

    def __init__(
        self,
        root: Path,
        *,
        instruction: str | None = None,
        views: Sequence[str] | None = None,
        vlm_reuse_count: int = 3,
        action_expert_hz: float = 10,
        horizon: int = 8,
    ) -> None:
        self._root = require_folder(root)
        self._instruction, self._views = instruction, views
        self._vlm_reuse_count, self._action_expert_hz, self._horizon = vlm_reuse_count, action_expert_hz, horizon
        # A dict keeps the order and drops the second marker of a folder that has both.
        found = (path.parent for path in files_below(self._root) if path.name in (OLD_MARKER, NEW_MARKER))
        self._folders = list(dict.fromkeys(found))
        if not self._folders:
            raise SourceError(f"{self._root} holds no episode: no folder with {OLD_MARKER} or {NEW_MARKER}")
        refuse_doubles(self._folders)

    def open_episode(self, folder: Path) -> Episode:
        """Return the episode in `folder`. Raises `MediaError` if it cannot be read, or is of both formats."""
        if format_of(folder) == "old":
            return OldEpisode(folder, vlm_reuse_count=self._vlm_reuse_count, horizon=self._horizon)
        return NewEpisode(folder, vlm_reuse_count=self._vlm_reuse_count, action_expert_hz=self._action_expert_hz)

    def __iter__(self) -> Iterator[StepSample]:
        for folder in self._folders:
            try:
                steps = self._steps(self.open_episode(folder))
            except (MediaError, OSError) as exc:
                steps = [StepSample(folder.name, 0, (), "", problem=f"episode {folder}: {exc}")]
            yield from steps

    def _steps(self, episode: Episode) -> list[StepSample]:
        views, instruction = chosen_views(episode, self._views), instruction_of(episode, self._instruction)
        return [
            StepSample(episode.name, vlm_idx, tuple(episode.image(view, vlm_idx) for view in views), instruction)
            for vlm_idx in episode.vlm_indices()
        ]

    def ignored(self) -> list[IgnoredFile]:
        """Return nothing: folders without an episode's marker are not part of the input."""
        return []
