"""`vlm-cache evaluate`: asks models a benchmark's questions with and without the cache, compares, and reports."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_store import (
    InexactFeature,
    ReadOnlyStore,
    RecipeMismatch,
    StoreReadError,
    absolute_root,
    canonical_dataset_name,
    is_root,
)
from consumers.evaluation import EvaluationError, LongVA_Cached
from consumers.evaluation.comparison import Answer, compare, unanswered
from consumers.evaluation.longva_backends import SMALL, require_backend
from jobs.build_request import check_name
from jobs.evaluate_arguments import DEFAULTS
from jobs.evaluate_files import LOG, PAGE, REPORT, LogFile, PrintableLines, ResultsFolder
from jobs.evaluate_page import evaluation_page
from jobs.evaluate_summary import ModelSummary, fault_of, percent, summary_of
from jobs.printing import notes, print_json, printable, results, table
from jobs.sizes import format_seconds
from pipeline.errors import BuildRefused
from pipeline.sources import BENCHMARKS, Benchmark, Question, UrlPath, absolute, parse_media_path
from pipeline.version import VERSION
from pipeline.vision import SamplingRule

logger = logging.getLogger("jobs.evaluate")
_ASKED = ("source", "data", "annotations", "dataset", "first", "model", "nframe", "sampling", "dtype", "device_map")
_NAMED_ON_A_TERMINAL = 20


def evaluate(args: argparse.Namespace) -> int:
    """Run or go on with an evaluation; 0 if everything agrees and was found, else 1."""
    folder, asked, left_out = _begun(args)
    with _logged(folder.path / LOG), _told_how_to_go_on(folder.path):
        print(printable(f"results in {folder.path}"), file=sys.stderr)
        for model in folder.asked["models"]:
            _ask(folder, model, asked)
        summaries = [summary_of(model, folder.answers_of(model)) for model in folder.asked["models"]]
        report = _report(folder, summaries, left_out)
        _write(folder, summaries, report)
        for one in summaries:
            logger.info("%s", printable(_in_words(one)))
    if args.json:
        print_json(report)
    else:
        _show(folder, summaries, report)
    return 0 if all(one.is_sound for one in summaries) else 1


def _begun(args: argparse.Namespace) -> tuple[ResultsFolder, list[tuple[int, Question]], int]:
    """Return the folder, the questions with their rows, and how many others there are; see `_questions`.

    Raises:
        BuildRefused: options beside --resume, which would be ignored; or a model's files have changed since.
    """
    given = [name for name in (*_ASKED, "store", "results") if getattr(args, name) is not None]
    if args.resume is None:
        vars(args).update({name: value for name, value in DEFAULTS.items() if name not in given})
        # Before a folder is made: nothing is left of what is refused.
        asked = _asked(args)
        questions, left_out = _questions(asked)
        return ResultsFolder.new(args.results, asked), questions, left_out
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise BuildRefused(f"{named}: --resume goes on with what {args.resume} was started with; leave them out")
    folder = ResultsFolder.at(args.resume, fields=[name for name in _ASKED if name != "model"])
    for model, files in zip(folder.asked["models"], folder.asked.get("model_files", ()), strict=False):
        if _files_of(model) != files:
            raise BuildRefused(f"{model} has changed since {args.resume} was started; begin a new evaluation")
    questions, left_out = _questions(folder.asked)
    folder.keep_answers_to(dict(questions))
    return folder, questions, left_out


@contextmanager
def _told_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"to go on: vlm-cache evaluate --resume {shlex.quote(str(folder))}", file=sys.stderr)
        raise


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked for, as it is kept for going on with it.

    Raises:
        BuildRefused: something is missing, or cannot work.
        StoreFormatError: the store is none, or its URL leads nowhere.
        InvalidKey: the data set's name cannot be part of a file's name.
    """
    missing = [f"--{name}" for name in ("source", "data", "model", "store") if getattr(args, name) is None]
    if missing:
        raise BuildRefused(f"{', '.join(missing)} must be given, or --resume DIR alone")
    if isinstance(args.data, UrlPath):
        raise BuildRefused(f"{args.data}: the uncached way decodes every video, so they must lie here")
    if not is_root(args.store):
        raise BuildRefused(f"{args.store} is no folder; --store names the root of a feature store")
    # Opened, so that a URL that leads nowhere is told before a folder of results is made.
    check_name(args, ReadOnlyStore(args.store))
    try:
        SamplingRule.parse(args.sampling)
    except ValueError as exc:
        raise BuildRefused(f"--sampling: {exc}") from exc
    models = [_checkpoint_folder(model) or model for model in args.model]
    if len(set(models)) < len(models):
        raise BuildRefused("a model is named twice")
    try:
        for model in models:
            require_backend(model)
    except EvaluationError as exc:
        raise BuildRefused(str(exc)) from exc
    given = {name: getattr(args, name) for name in _ASKED if name != "model"}
    given |= {"data": str(Path(args.data).absolute()), "store": str(absolute_root(args.store))}
    given["annotations"] = None if args.annotations is None else str(absolute(args.annotations))
    return {"version": VERSION, "models": models, "model_files": list(map(_files_of, models)), **given}


def _checkpoint_folder(model: str) -> str | None:
    """Return the absolute path of a checkpoint's folder; None for a hub id or a built-in model, whatever lies here."""
    is_built_in = model.partition(":")[0] == SMALL
    return os.path.abspath(model) if os.path.isdir(model) and not is_built_in else None


def _files_of(model: str) -> list[list[Any]]:
    """Return name, size and time of each file of a checkpoint's folder: another model has others."""
    folder = _checkpoint_folder(model)
    files = [] if folder is None else sorted(path for path in Path(folder).iterdir() if path.is_file())
    return [[path.name, status.st_size, status.st_mtime_ns] for path in files for status in [path.stat()]]


def _questions(asked: dict[str, Any]) -> tuple[list[tuple[int, Question]], int]:
    """Return the multiple-choice questions with their rows, and how many others there are.

    Raises:
        SourceError: the benchmark cannot be read.
        BuildRefused: it has no such question.
    """
    annotations = asked["annotations"]
    source = Benchmark(
        BENCHMARKS[asked["source"]],
        parse_media_path(asked["data"]),
        None if annotations is None else parse_media_path(annotations),
        dataset=None if asked["dataset"] is None else canonical_dataset_name(asked["dataset"]),
    )
    every = list(enumerate(source.questions()))
    found = [(row, question) for row, question in every if question.choices is not None]
    if not found:
        raise BuildRefused(
            f"none of the {len(every):,} questions has options and an answer; there is nothing to choose"
        )
    return found[: asked["first"]], len(every) - len(found)


def _ask(folder: ResultsFolder, model: str, questions: Sequence[tuple[int, Question]]) -> None:
    """Ask one model what it was not asked yet; of one that cannot be loaded each question is noted with the reason."""
    done = {answer.row for answer in folder.answers_of(model)}
    left = [(row, question) for row, question in questions if row not in done]
    logger.info("%s: %d questions, %d of them answered before", printable(model), len(questions), len(done))
    if not left:
        return
    asked = folder.asked
    try:
        longva = LongVA_Cached(
            model,
            asked["store"],
            nframe=asked["nframe"],
            sampling=asked["sampling"],
            dtype=asked["dtype"],
            device_map=asked["device_map"],
        )
    except EvaluationError as exc:
        logger.error("%s", printable(str(exc)))
        for row, question in left:
            folder.note(unanswered(model, row, question, str(exc)))
        return
    try:
        with _progress(model, len(questions), len(done)) as tell:
            for answer in compare(longva, left, on_failure=_reason):
                folder.note(answer)
                _log(answer)
                tell(answer)
    finally:
        for line in (printable(model), *longva.statistics.block().splitlines()):
            logger.info("%s", line)
        # Its statistics are printed, and results have stdout for themselves.
        with redirect_stdout(sys.stderr):
            longva.close()


def _log(answer: Answer) -> None:
    fault = fault_of(answer)
    level = logging.INFO if fault is None else logging.WARNING
    said = fault or f"{answer.cached}, right is {answer.answer}"
    line = f"{answer.model}: question {answer.question_id} about {answer.video_id}: {said}"
    logger.log(level, "%s", printable(line))


def _reason(exc: Exception) -> str:
    """Return why a question has no answer.

    Raises:
        StoreReadError: the disk fails, for all that follow too.
    """
    if isinstance(exc, StoreReadError):
        raise exc
    if not isinstance(exc, RecipeMismatch | InexactFeature | EvaluationError | FileNotFoundError):
        logger.exception("a question failed")
    return f"{type(exc).__name__}: {exc}"


def _report(folder: ResultsFolder, summaries: Sequence[ModelSummary], left_out: int) -> dict[str, Any]:
    faults = [
        {
            "model": answer.model,
            "question_id": answer.question_id,
            "row": answer.row,
            "video_id": answer.video_id,
            "reason": fault,
        }
        for answer in folder.answers
        if (fault := fault_of(answer)) is not None
    ]
    return {
        "results": str(folder.path),
        "models": [one.to_json() for one in summaries],
        "not_multiple_choice": left_out,
        "failed": faults,
    }


def _write(folder: ResultsFolder, summaries: Sequence[ModelSummary], report: dict[str, Any]) -> None:
    asked, answers = folder.asked, folder.answers
    videos = len({answer.video_id for answer in answers})
    questions = len({answer.row for answer in answers})
    subtitle = (
        f"{len(summaries)} model{'s' * (len(summaries) != 1)}, {questions:,} questions about {videos:,} videos, "
        f"{'every answer agrees and every feature was found; ' * all(one.is_sound for one in summaries)}"
        f"{asked['nframe']} frames ({asked['sampling']}), cached and uncached; vlm-cache "
        f"{asked['version']}; {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    )
    left_out = report["not_multiple_choice"]
    remarks = [f"{left_out:,} questions are no multiple choice with a known answer, and were not asked"] * bool(
        left_out
    )
    dataset = answers[0].dataset if answers else asked["source"]
    page = evaluation_page(f"{dataset} with and without the vision cache", subtitle, summaries, answers, remarks)
    try:
        folder.write_tables()
        (folder.path / PAGE).write_text(page, encoding="utf-8")
        (folder.path / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as exc:
        raise BuildRefused(f"{folder.path} cannot be written: {exc.strerror or exc}") from exc


def _show(folder: ResultsFolder, summaries: Sequence[ModelSummary], report: dict[str, Any]) -> None:
    console = results()
    columns = [
        ("model", "name"),
        *((name, "right") for name in ("questions", "agree", "hits", "accuracy", "times as fast")),
    ]
    made = table(*columns)
    for one in summaries:
        counts = (f"{one.questions:,}", f"{one.agreeing:,}", f"{one.hits:,}")
        figures = (percent(one.overall.share), f"{one.speedup:.2f}x") if one.answered else ("-", "-")
        made.add_row(escape(printable(one.model)), *counts, *figures)
    console.print(made)
    faults = report["failed"]
    for fault in faults[:_NAMED_ON_A_TERMINAL]:
        line = f"{fault['model']}: question {fault['question_id']} about {fault['video_id']}: {fault['reason']}"
        console.print(printable(line), markup=False)
    if len(faults) > _NAMED_ON_A_TERMINAL:
        more = len(faults) - _NAMED_ON_A_TERMINAL
        console.print(printable(f"and {more:,} more in {folder.path / REPORT}"), markup=False)
    console.print(printable(f"{folder.path / PAGE}"), markup=False)


def _in_words(one: ModelSummary) -> str:
    return (
        f"{one.model}: {one.questions} questions, {one.agreeing} agree, {one.hits} hits, accuracy "
        f"{percent(one.overall.share)}, {format_seconds(one.cached.total_s)} with the cache and "
        f"{format_seconds(one.live.total_s)} without"
    )


@contextmanager
def _progress(model: str, total: int, done: int) -> Iterator[Any]:
    """Show how far a model is, and how much is wrong so far."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes()) as shown:
        line = shown.add_task(printable(model), total=total, completed=done)
        wrong = 0

        def tell(answer: Answer) -> None:
            nonlocal wrong
            wrong += fault_of(answer) is not None
            label = printable(model) + (f", {wrong} wrong" if wrong else "")
            shown.update(line, advance=1, description=label)

        yield tell


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what is logged by this project into a file too."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(PrintableLines("%(asctime)s %(levelname)s %(message)s"))
    names = ("jobs.evaluate", "consumers.evaluation", "cache_store")
    try:
        for name in names:
            logging.getLogger(name).addHandler(handler)
        logger.setLevel(logging.INFO)
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
        handler.close()
