"""Any benchmark whose annotations list questions about videos: one sample for each video, one row for each question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import SourceError
from pipeline.sources.annotations import SUFFIXES, read_rows
from pipeline.sources.archives import unpack_hint
from pipeline.sources.choices import (
    ANSWER_COLUMNS,
    EACH_OPTION_COLUMNS,
    OPTION_COLUMNS,
    AnswerIs,
    choices_of,
    without_options,
)
from pipeline.sources.data_folder import DataFolder
from pipeline.sources.media_path import MediaPath, absolute
from pipeline.sources.samples import IgnoredFile, Question, VideoSample
from pipeline.sources.video_ids import is_bare_stem, repeated_stems, video_id

DURATION_COLUMNS = ("duration_group", "duration")
DOMAIN_COLUMNS = ("domain", "topic_category", "category")
_DURATIONS = ((120, "below 2 min"), (900, "2 to 15 min"), (3600, "15 to 60 min"), (float("inf"), "1 h and more"))
_NAMED_IN_A_PROBLEM = 5  # questions and places; the rest is counted


@dataclass(frozen=True)
class Row:
    """One question of an annotation file."""

    file: str  # the annotation file's path, relative to the folder in which it was found; POSIX
    number: int  # from 0, in its file
    values: Mapping[str, Any]  # never None or ""

    def text(self, *columns: str) -> str | None:
        """Return the first of these columns that the row has, as text."""
        return next((str(self.values[column]) for column in columns if column in self.values), None)

    def number_of(self, column: str) -> float | None:
        """Return a column as a number; None where it is missing or not finite. Raises ValueError for what is none."""
        value = float(str(self.values.get(column, "nan")))
        return value if isfinite(value) else None

    @property
    def stem(self) -> str:
        """The annotation file's name without its extension."""
        return PurePosixPath(self.file).stem

    @property
    def folder(self) -> str:
        """The name of the folder that holds the annotation file; empty for the top."""
        return PurePosixPath(self.file).parent.name


@dataclass(frozen=True)
class Place:
    """Where a question's video may lie, and which part of it is meant."""

    path: str  # POSIX, relative to the data folder
    start_s: float | None = None
    end_s: float | None = None
    fps: float | None = None  # images per second, where the place is a folder of numbered images

    def __post_init__(self) -> None:
        # "./videos/x.mp4" and "videos/x.mp4" are one place.
        object.__setattr__(self, "path", str(PurePosixPath(self.path)))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one benchmark lies on disk. A new benchmark is one of these and an entry in `benchmarks.py`."""

    dataset: str  # canonical name
    annotations: tuple[
        str, ...
    ]  # patterns in the data folder, parted by spaces: all files of the first that match are read
    video_columns: tuple[str, ...]  # each row has one of them
    places: Callable[[Row], Sequence[Place]]  # where the row's video is looked for, in this order
    answer_is: AnswerIs  # how a multiple-choice question names the right option
    other_columns: tuple[str, ...] = ()  # that `places` and `task` look at
    annotation_folders: tuple[str, ...] = (".",)  # where a single file of any name is accepted if no pattern matches
    question_id: tuple[str, ...] = ("question_id", "id", "index")  # columns; without any the row's number
    question_type: tuple[str, ...] = ("question_type", "task_type")
    task: Callable[[Row], str | None] = lambda row: None  # the part of the benchmark that asks
    name: Callable[[Row], str] | None = None  # the video's id, where it is not the file's stem
    stems_repeat: bool = False  # in the whole benchmark: then every id is a path, whichever part of it is built
    unfold: Callable[[Any], list[dict[str, Any]]] | None = None  # rows of a JSON file that is no list

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        asked = ("question", *OPTION_COLUMNS, *EACH_OPTION_COLUMNS, *ANSWER_COLUMNS, *DURATION_COLUMNS, *DOMAIN_COLUMNS)
        wanted = (*self.video_columns, *self.other_columns, *self.question_id, *self.question_type, *asked)
        return tuple(dict.fromkeys(wanted))


@dataclass(frozen=True)
class _Found:
    place: Place
    is_missing: bool
    name: str | None


class Benchmark:
    """The videos that a benchmark's annotations name, each once, in the order in which they are first asked about.

    A video whose file is missing is a sample with a problem, which names the questions that need it.

    Raises:
        SourceError: the data folder or the annotations are missing or unreadable, a row names no video, or two
            different videos have one id.
    """

    def __init__(
        self, layout: Layout, root: MediaPath, annotations: MediaPath | None = None, *, dataset: str | None = None
    ) -> None:
        self._layout, self._folder = layout, DataFolder(root)
        self.dataset = layout.dataset if dataset is None else dataset
        self._rows = [row for file, place in self._files(annotations) for row in self._read(file, place)]
        looked: dict[tuple[str | None, tuple[Place, ...]], _Found] = {}
        self._asked = [self._look_for(row, looked) for row in self._rows]
        # Where two videos share a stem, both need more than that as their id. Which do must not depend on the part of
        # the benchmark that is built: two parts built one after the other would take each other's features.
        paths = {found.place.path for found in looked.values()}
        self._repeated = repeated_stems(paths, at_least=1 if layout.stems_repeat else 2)
        self._samples = self._make_samples()

    def _files(self, annotations: MediaPath | None) -> list[tuple[str, MediaPath]]:
        """Return the annotation files, each with its name in the table of questions."""
        if annotations is None:
            return self._search(self._folder)
        place = absolute(annotations)
        if place.suffix.lower() not in SUFFIXES:
            return self._search(DataFolder(place))
        below = f"{self._folder.root}/"
        name = str(place).removeprefix(below)
        # Its folder may say which part of the benchmark asks.
        return [(name if str(place).startswith(below) else "/".join(name.split("/")[-2:]), place)]

    def _search(self, folder: DataFolder) -> list[tuple[str, MediaPath]]:
        for patterns in self._layout.annotations:
            found = [file for pattern in patterns.split() for file in folder.glob(pattern)]
            if found:
                return [(file, folder.place(file)) for file in found]
        others = [f"{place}/*" if place != "." else "*" for place in self._layout.annotation_folders]
        found = [file for pattern in others for file in folder.glob(pattern) if file.lower().endswith(SUFFIXES)]
        if len(found) != 1:
            expected = " nor ".join(self._layout.annotations)
            raise SourceError(
                f"{folder.root} has neither {expected}, and {len(found)} other annotation files "
                f"({', '.join(found) or 'none'}); pass the right one, or their folder, as --annotations"
            )
        return [(found[0], folder.place(found[0]))]

    def _read(self, file: str, place: MediaPath) -> Iterator[Row]:
        layout = self._layout
        rows = read_rows(place, columns=layout.columns, required=layout.video_columns, unfold=layout.unfold)
        for number, values in enumerate(rows):
            if not any(column in values for column in layout.video_columns):
                raise SourceError(f"row {number + 1} of {place} has no {' or '.join(layout.video_columns)}")
            yield Row(file, number, values)

    def _look_for(self, row: Row, looked: dict[tuple[str | None, tuple[Place, ...]], _Found]) -> _Found:
        try:
            name = None if self._layout.name is None else self._layout.name(row)
            places = tuple(self._layout.places(row))
        except ValueError as exc:
            raise SourceError(f"row {row.number + 1} of {row.file}: {exc}") from exc
        if (name, places) not in looked:
            found = next((place for place in places if self._holds(place)), None)
            looked[name, places] = _Found(found or places[0], found is None, name)
        return looked[name, places]

    def _holds(self, place: Place) -> bool:
        has = self._folder.has_file if place.fps is None else self._folder.has_folder
        return has(place.path)

    def _id(self, found: _Found) -> str:
        if found.name is not None:
            return found.name
        place = found.place
        return video_id(place.path, repeated=self._repeated, start_s=place.start_s, end_s=place.end_s)

    def _make_samples(self) -> dict[_Found, VideoSample]:
        questions: dict[_Found, list[str]] = {}
        for row, found in zip(self._rows, self._asked, strict=True):
            questions.setdefault(found, []).append(self._question_id(row))
        first_with: dict[str, Place] = {}
        samples = {}
        for found, asked_by in questions.items():
            name, place = self._id(found), found.place
            other = first_with.setdefault(name, place)
            if other != place:
                raise SourceError(
                    f"two videos would have the id {name!r}: {_shown(other)} and {_shown(place)} below "
                    f"{self._folder.root}; rename one of them, or build them as two data sets"
                )
            samples[found] = VideoSample(
                self.dataset,
                name,
                self._folder.place(place.path),
                place.path,
                start_s=place.start_s,
                end_s=place.end_s,
                fps=place.fps,
                problem=self._problem(place, asked_by) if found.is_missing else None,
                has_bare_stem=found.name is None and is_bare_stem(place.path, repeated=self._repeated),
            )
        return samples

    def _problem(self, place: Place, asked_by: list[str]) -> str:
        what = "file" if place.fps is None else "folder of images"
        problem = (
            f"no {what} {place.path} below {self._folder.root}, nor where else this benchmark keeps it; "
            f"needed by {_some(asked_by)}"
        )
        return f"{problem}; {self._unpack_hint}" if self._unpack_hint else problem

    @cached_property
    def _unpack_hint(self) -> str | None:
        return unpack_hint(self._folder)

    def _question_id(self, row: Row) -> str:
        return row.text(*self._layout.question_id) or str(row.number)

    def __iter__(self) -> Iterator[VideoSample]:
        yield from self._samples.values()

    def questions(self) -> Iterator[Question]:
        """Yield every row of the annotations in their order, with the video that it asks about."""
        for row, found in zip(self._rows, self._asked, strict=True):
            choices, question = choices_of(row.values, answer_is=self._layout.answer_is), row.text("question")
            yield Question(
                annotations=row.file,
                task=self._layout.task(row),
                question_id=self._question_id(row),
                question=without_options(question, choices) if choices and question else question,
                question_type=row.text(*self._layout.question_type),
                sample=self._samples[found],
                choices=choices,
                duration=_duration_group(row),
                domain=row.text(*DOMAIN_COLUMNS),
            )

    def ignored(self) -> list[IgnoredFile]:
        """Return nothing: files that no annotation names are not looked for."""
        return []


def _duration_group(row: Row) -> str | None:
    """Return the benchmark's own group, or one of ours where it gives seconds."""
    stated = row.text(*DURATION_COLUMNS)
    try:
        seconds = float(stated or "")
    except ValueError:
        return stated
    if "duration_group" in row.values:
        return f"up to {seconds:g} s"
    return next((name for end_s, name in _DURATIONS if seconds < end_s), None)


def _some(questions: list[str]) -> str:
    more = len(questions) - _NAMED_IN_A_PROBLEM
    named = ", ".join(questions[:_NAMED_IN_A_PROBLEM]) + (f" and {more} more" if more > 0 else "")
    return f"question{'s' if len(questions) > 1 else ''} {named}"


def _shown(place: Place) -> str:
    bounds = "" if place.start_s is None and place.end_s is None else f" from {place.start_s} to {place.end_s} s"
    return place.path + bounds
