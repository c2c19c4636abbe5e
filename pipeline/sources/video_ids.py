"""The one rule that turns a video's path and clip bounds into its `video_id`, for writers and readers alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

# What a folder source takes, compared in lower case.
VIDEO_EXTENSIONS = frozenset(
    [
        "3gp",
        "asf",
        "avi",
        "f4v",
        "flv",
        "gif",
        "m2ts",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpe",
        "mpeg",
        "mpg",
        "mts",
        "ogv",
        "ts",
        "vob",
        "webm",
        "wmv",
        "y4m",
    ]
)


def is_video(name: str) -> bool:
    """Return whether a file name has one of the known video extensions."""
    return PurePosixPath(name).suffix.lower().removeprefix(".") in VIDEO_EXTENSIONS


def repeated_stems(relative_paths: Iterable[str], *, at_least: int = 2) -> frozenset[str]:
    """Return the stems that more than one of the paths has; those videos need more than their stem as id."""
    counts = Counter(_without_extension(PurePosixPath(path)).name for path in relative_paths)
    return frozenset(stem for stem, count in counts.items() if count >= at_least)


def video_id(
    relative_path: str,
    *,
    repeated: frozenset[str] = frozenset(),
    start_s: float | None = None,
    end_s: float | None = None,
) -> str:
    """Return the id of a video from its POSIX path relative to the data folder.

    The file's stem; where `repeated` (see `repeated_stems`) holds the stem, the path without extension. What is no
    known video extension belongs to the name: a folder of images may have dots in it. A clip appends its bounds.
    """
    path = _without_extension(PurePosixPath(relative_path))
    return (str(path) if path.name in repeated else path.name) + clip_suffix(start_s, end_s)


def is_bare_stem(relative_path: str, *, repeated: frozenset[str]) -> bool:
    """Return whether the id is no more than a stem that others have too: before this video came, it was another's."""
    return "/" not in relative_path and _without_extension(PurePosixPath(relative_path)).name in repeated


def clip_suffix(start_s: float | None, end_s: float | None) -> str:
    """Return what a clip's bounds add to its video's id; nothing without bounds.

    `@<start>-<end>` in seconds, each as the shortest decimal that reads back as the same float, without `.0`; a bound
    that is None stays empty.
    """
    return "" if start_s is None and end_s is None else f"@{_seconds(start_s)}-{_seconds(end_s)}"


def _without_extension(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if is_video(path.name) else path


def _seconds(value: float | None) -> str:
    return "" if value is None else repr(float(value)).removesuffix(".0")
