"""`vlm-cache stream` followed by a report's name: loads the model, measures, shows and writes the report."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from consumers.streaming.errors import StreamError
from consumers.streaming.qwen_model import load_streaming_model
from consumers.streaming.reports import (
    Report,
    Setting,
    SourceVideo,
    report_capacity,
    report_check,
    report_chunks,
    report_compare,
    report_delayed,
    report_multi_round,
)
from consumers.streaming.reports.capacity import FRAME_SIZES
from consumers.streaming.reports.chunk_sizes import SIZES
from consumers.streaming.reports.multi_round import CHOICES
from consumers.streaming.reports.setting import QUESTIONS
from jobs.preconditions import check_device
from jobs.printing import notes, print_json, printable, results
from jobs.report_files import make_report_folder
from jobs.stream_report_page import write_report
from jobs.stream_report_view import for_terminal
from pipeline.errors import BuildRefused
from pipeline.failures import is_out_of_memory


def run(args: argparse.Namespace) -> int:
    """Make the report that `args.stream_command` names; returns 1 if something of it failed or is not written.

    Raises:
        BuildRefused: no model or video is named, they do not go together, the model gives no answers or memory no
            room, or nothing can be written to the report's folder.
    """
    for what, variable in (("model", "QWEN_MODEL_PATH"), ("video", "VIDEO_PATH")):
        if not getattr(args, what):
            raise BuildRefused(f"name a {what}: --{what}, or ${variable} in the environment")
    check_device(args.device)
    if args.report is not None:
        make_report_folder(args.report)
    stride = args.frame_stride or (1 if args.stream_command == "capacity" else None)
    video = SourceVideo(args.video, stride=stride)
    with _progress(f"stream {args.stream_command}") as told:
        told(0, 0, f"loading {args.model}")
        try:
            model, processor = load_streaming_model(args.model, args.device, dtype=args.dtype, attention=args.attention)
            bounds = {name: getattr(args, name) for name in ("max_new_tokens", "max_pixels") if name in args}
            setting = Setting(model, processor, video, model_name=args.model, told=told, **bounds)
            report = _REPORTS[args.stream_command](setting, args)
        except ModuleNotFoundError:
            raise
        except (StreamError, ValueError, ImportError) as exc:  # the last: kernels that are not installed
            raise BuildRefused(str(exc)) from exc
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
            raise BuildRefused(f"out of memory: take fewer frames or smaller ones ({exc})") from exc
    is_written = _show(report, args)
    return 0 if is_written and not report.failures else 1


def _compare(setting: Setting, args: argparse.Namespace) -> Report:
    return report_compare(
        setting,
        frames=args.frames,
        chunk_frames=args.chunk_frames,
        last=args.last,
        questions=args.question or QUESTIONS,
    )


def _chunks(setting: Setting, args: argparse.Namespace) -> Report:
    return report_chunks(
        setting,
        sizes=args.size or SIZES,
        frames=args.frames,
        question=args.question,
        choices=args.choice or CHOICES,
    )


def _delayed(setting: Setting, args: argparse.Namespace) -> Report:
    return report_delayed(setting, frames=args.frames, more=args.more, question=args.question)


def _multi_round(setting: Setting, args: argparse.Namespace) -> Report:
    return report_multi_round(
        setting,
        rounds=args.rounds,
        chunk_frames=args.chunk_frames,
        chunks_per_round=args.chunks_per_round,
        questions=args.question or QUESTIONS,
        choices=args.choice or CHOICES,
        wrapping=args.wrapping,
    )


def _capacity(setting: Setting, args: argparse.Namespace) -> Report:
    return report_capacity(
        setting,
        sizes=args.size or FRAME_SIZES,
        limit_bytes=args.memory_limit,
        most_chunks=args.max_chunks,
        wrapping=args.wrapping,
    )


def _check(setting: Setting, args: argparse.Namespace) -> Report:
    return report_check(setting, has_sense=args.model != "small")


_REPORTS: dict[str, Callable[[Setting, argparse.Namespace], Report]] = {
    "compare": _compare,
    "chunks": _chunks,
    "delayed": _delayed,
    "multi-round": _multi_round,
    "capacity": _capacity,
    "check": _check,
}


def _show(report: Report, args: argparse.Namespace) -> bool:
    """Write and print a report; returns whether what was to be written is."""
    is_written = args.report is None or write_report(report, args.report)
    if args.report is not None and is_written:
        notes().print(f"wrote {printable(str(args.report / 'report.html'))}", markup=False, soft_wrap=True)
    if args.json:
        print_json(report.to_json())
    else:
        results().print(for_terminal(report))
    return is_written


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"))
    console = notes()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=None, what="")

        def told(done: int, of: int, what: str) -> None:
            bars.update(bar, completed=done, total=of or None, what=printable(what))

        yield told
