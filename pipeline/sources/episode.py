"""What both formats of a VLA episode offer to the build and to the training data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import MediaError
from pipeline.sources.samples import ImageFile


class Episode(Protocol):
    """One recording of a robot. Reading it raises `MediaError` where the recording is damaged."""

    name: str
    folder: Path
    own_instruction: str | None

    @property
    def views(self) -> tuple[str, ...]:
        """Camera names, sorted."""
        ...

    def num_samples(self) -> int:
        """Return how many samples the training data set makes of the episode."""
        ...

    def vlm_idx(self, sample: int) -> int:
        """Return the step that a sample uses."""
        ...

    def vlm_indices(self) -> Iterator[int]:
        """Yield the steps that those samples need, ascending, each once."""
        ...

    def image(self, view: str, vlm_idx: int) -> ImageFile:
        """Return the image of one view at one step."""
        ...


def chosen_views(episode: Episode, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the views to use, sorted.

    Raises:
        MediaError: the episode lacks one of `wanted`, or has no view at all.
    """
    missing = sorted(set(wanted or ()) - set(episode.views))
    if missing:
        raise MediaError(f"no view {', '.join(missing)}; this episode has {', '.join(episode.views) or 'none'}")
    views = tuple(sorted(set(wanted))) if wanted else episode.views
    if not views:
        raise MediaError("the episode has no images")
    return views


def instruction_of(episode: Episode, override: str | None) -> str:
    """Return the instruction of an episode: `override`, else its own, else the default made of its parent folder."""
    if override is not None:
        return override
    if episode.own_instruction:
        return episode.own_instruction
    return f"Perform {episode.folder.parent.name.replace('_', ' ')} insertion task."


def stated_instruction(value: Any) -> str | None:
    """Return the instruction that an episode's own file states, None where it states none.

    Raises:
        MediaError: it is no text, or has characters that UTF-8 cannot hold, and so no hash.
    """
    if not isinstance(value, str | None):
        raise MediaError(f"the instruction is of type {type(value).__name__}; a text is expected")
    try:
        (value or "").encode()
    except UnicodeEncodeError as exc:
        raise MediaError(f"the instruction {value!a} is no text: {exc.reason}") from exc
    return value or None
