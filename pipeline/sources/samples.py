"""The hand-over from sources to the plan: one sample is one unit of work, one video or one VLM step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.sources.choices import Choices
from pipeline.sources.media_path import MediaPath


@dataclass(frozen=True)
class VideoSample:
    """One video, or one clip of it, of one data set."""

    dataset: str  # canonical data set name
    video_id: str  # unique in the data set; the bounds of a clip are part of it
    path: MediaPath  # absolute; where it was expected, if `problem` says that it is missing
    relative_path: str  # POSIX, relative to the data folder
    start_s: float | None = None  # clip bounds in seconds from the video's start
    end_s: float | None = None
    fps: float | None = None  # images per second, where `path` is a folder of numbered images
    problem: str | None = None  # why this sample cannot be built: it fails at stage "source"
    has_bare_stem: bool = False  # other videos have the stem that is its id, which may have been one of theirs


@dataclass(frozen=True)
class ImageFile:
    """One camera's image of a step, in a file of its own."""

    view: str
    path: MediaPath


@dataclass(frozen=True)
class VideoFrame:
    """One camera's image of a step, as frame `frame_index` (play order, from 0) of a video file."""

    view: str
    path: MediaPath
    frame_index: int


ViewImage = ImageFile | VideoFrame


@dataclass(frozen=True)
class StepSample:
    """One VLM step of one robot episode."""

    dataset: str  # the episode's name in file names
    vlm_idx: int
    images: tuple[ViewImage, ...]  # one per view, sorted by view
    instruction: str
    problem: str | None = None  # why this sample cannot be built: it fails at stage "source"
    # The steps that share a forward with it, itself included, in order; empty where each step has its own.
    together: tuple[StepSample, ...] = ()


Sample = VideoSample | StepSample


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, with the video that it asks about: a row of the table that evaluation joins on."""

    annotations: str  # annotation file, POSIX
    task: str | None  # the part of the benchmark that asks, in its own spelling
    question_id: str  # the benchmark's own, or the row's number in its file; unique within file and task at best
    question: str | None  # without the options that it lists itself, where they are among `choices`
    question_type: str | None
    sample: VideoSample
    choices: Choices | None = None  # None: not multiple choice, or without an answer
    duration: str | None = None  # the group that the benchmark puts the video in by its length
    domain: str | None = None  # what it is about


@dataclass(frozen=True)
class IgnoredFile:
    """A file that a source passed over, and why."""

    path: MediaPath
    reason: str


class Source(Protocol):
    """Samples of one input, lazily, in an order that depends on the input alone.

    Building a source checks what can be checked without opening media and raises `SourceError` for a missing or empty
    folder, unreadable annotations, or two different files under one name (both are named). Iterating twice gives equal
    samples in equal order.
    """

    def __iter__(self) -> Iterator[Sample]: ...

    def ignored(self) -> list[IgnoredFile]:
        """Return what the enumeration passed over, in path order."""
        ...
