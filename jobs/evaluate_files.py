"""The results folder of an evaluation: its answers as they come, and the tables that are made of them."""

from __future__ import annotations

import itertools
import json
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import openpyxl
from openpyxl.cell import WriteOnlyCell

from cache_store.atomic import publish
from consumers.evaluation.comparison import Answer
from jobs.evaluate_summary import fault_of
from jobs.printing import printable
from jobs.report_files import new_folder
from pipeline.errors import BuildRefused
from pipeline.sources import Question
from pipeline.sources.question_table import as_utf8

ASKED, ANSWERS, TABLE, PAGE, REPORT, LOG = (
    "evaluate.json",
    "answers.jsonl",
    "results.parquet",
    "report.html",
    "report.json",
    "evaluate.log",
)
_SUFFIXES = {"": "cached", "-uncached": "live"}  # of a model's two tables
# As VLMEvalKit names them in the tables that it writes.
_XLSX_COLUMNS = ("index", "video", "video_path", "duration", "domain", "task_type", "question", "candidates", "answer")
# What a sheet cannot hold, by the production Char of XML 1.0.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ResultsFolder:
    """One folder of results, new or gone on with."""

    def __init__(self, path: Path, asked: dict[str, Any], answers: list[Answer]) -> None:
        self.path, self.asked, self.answers = path, asked, answers

    @classmethod
    def new(cls, parent: Path, asked: dict[str, Any]) -> ResultsFolder:
        """Make a folder named by the time below `parent`.

        Raises:
            BuildRefused: it cannot be made.
        """
        path = new_folder(parent, "longva_cached")
        try:
            (path / ASKED).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
        except OSError as exc:
            raise BuildRefused(f"{path} cannot be written: {exc.strerror or exc}") from exc
        return cls(path, asked, [])

    @classmethod
    def at(cls, path: Path, *, fields: Collection[str]) -> ResultsFolder:
        """Open the folder of an evaluation; what was wrong in it is asked again, as is a torn last line.

        Raises:
            BuildRefused: it is none.
        """
        try:
            asked = json.loads((path / ASKED).read_text(encoding="utf-8"))
            if not isinstance(asked, dict) or not asked.keys() >= {"models", *fields}:
                raise ValueError(f"{ASKED} says not what was asked for")
            lines = (path / ANSWERS).read_text(encoding="utf-8").splitlines() if (path / ANSWERS).exists() else []
        except (OSError, ValueError) as exc:
            raise BuildRefused(f"{path} holds no evaluation: {exc}") from exc
        answers: dict[tuple[str, int], Answer] = {}
        for line in lines:
            try:
                answer = Answer.from_json(json.loads(line))
                answers[answer.model, answer.row] = answer
            except (ValueError, TypeError):
                continue
        # A video may have been fetched meanwhile, a feature built, and a damaged one replaced.
        return cls(path, asked, [answer for answer in answers.values() if fault_of(answer) is None])

    def keep_answers_to(self, questions: Mapping[int, Question]) -> None:
        """Forget the answers to rows that are now another question, or none; on disk too, all at once or not at all.

        Raises:
            StoreWriteError: it cannot be written; then the file is as it was.
        """
        self.answers = [
            answer for answer in self.answers if answer.row in questions and answer.is_to(questions[answer.row])
        ]
        kept, path = "".join(map(_line, self.answers)), self.path / ANSWERS
        # A torn last line makes a difference too: the next answer would be glued to it.
        if kept != (path.read_text(encoding="utf-8") if path.exists() else ""):
            publish([kept.encode()], path)

    def note(self, answer: Answer) -> None:
        """Keep an answer, on disk too.

        Raises:
            BuildRefused: it cannot be written.
        """
        self.answers.append(answer)
        try:
            with open(self.path / ANSWERS, "a", encoding="utf-8") as file:
                file.write(_line(answer))
        except OSError as exc:
            raise BuildRefused(f"{self.path / ANSWERS} cannot be written: {exc.strerror or exc}") from exc

    def answers_of(self, model: str) -> list[Answer]:
        """Return one model's answers by row."""
        return sorted((answer for answer in self.answers if answer.model == model), key=lambda answer: answer.row)

    def write_tables(self) -> None:
        """Write `results.parquet`, and for each model two tables as VLMEvalKit writes them. Raises OSError."""
        import pyarrow
        import pyarrow.parquet

        ordered = [answer for model in self.asked["models"] for answer in self.answers_of(model)]
        table = pyarrow.Table.from_pylist([as_utf8(_row(answer)) for answer in ordered])
        with open(self.path / TABLE, "wb") as file:  # Arrow takes no path that is no UTF-8
            pyarrow.parquet.write_table(table, file)
        for model, name in _file_names(self.asked["models"]).items():
            answers = self.answers_of(model)
            for suffix, ways in _SUFFIXES.items():
                dataset = answers[0].dataset if answers else "none"
                _write_xlsx(self.path / f"{name}{suffix}_{dataset}.xlsx", answers, ways)


class LogFile(logging.FileHandler):
    """The log. What it cannot write is told once, in a line, where logging would print a traceback for each record."""

    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell of the first failure."""
        if not self._is_told:
            self._is_told = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        """Close the file; what it still holds and cannot write has been told of."""
        with suppress(OSError):
            super().close()


class PrintableLines(logging.Formatter):
    """A line for each record, and those of its traceback: names of videos and models stand in both."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Return the traceback's lines."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def _file_names(models: Sequence[str]) -> dict[str, str]:
    """Return a name for each model's files: its last part, numbered where two folders are called alike."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for model in models:
        name = re.sub(r"[^\w.-]+", "-", model.rstrip("/").rsplit("/", 1)[-1])
        numbered = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names[model] = next(one for one in numbered if not taken & {one + suffix for suffix in _SUFFIXES})
        taken |= {names[model] + suffix for suffix in _SUFFIXES}
    return names


def _line(answer: Answer) -> str:
    return json.dumps(answer.to_json()) + "\n"


def _row(answer: Answer) -> dict[str, Any]:
    fields = asdict(answer)
    nothing = dict.fromkeys(("total_s", "pixels_s", "tower_s", "read_s"))
    for ways in ("cached", "live"):
        stages = fields.pop(f"{ways}_stages") or nothing
        fields |= {f"{ways}_{name}": stages[name] for name in nothing}
    return {**fields, "is_right": answer.is_right}


def _write_xlsx(path: Path, answers: Sequence[Answer], ways: str) -> None:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append([*_XLSX_COLUMNS, "prediction"])
    for answer in answers:
        values = (answer.row, answer.video_id, answer.video_path, answer.duration, answer.domain, answer.task)
        asked = (answer.question, str(answer.options), answer.answer, getattr(answer, ways))
        sheet.append([_cell(sheet, value) for value in (*values, *asked)])
    # Not into the file itself: where that fails, openpyxl prints tracebacks of what it had open.
    whole = BytesIO()
    book.save(whole)
    path.write_bytes(whole.getvalue())


def _cell(sheet: Any, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A text that begins with "=" would be taken for a formula.
    cell = WriteOnlyCell(sheet, _NOT_IN_XML.sub("", value)[:32767])
    cell.data_type = "s"
    return cell
