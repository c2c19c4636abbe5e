"""Stream, delayed, last-N and native inference side by side on the same frames and questions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.last_n import LastNFramesEngine
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper
from consumers.streaming.reports.failures import named
from consumers.streaming.reports.report import Bars, Cell, Report, Table
from consumers.streaming.reports.setting import QUESTIONS, Setting

SHORT, LONG = 0.5, 2.0  # answers shorter or longer than this many times native's are flagged
NATIVE = "native"
Row = dict[str, Cell]
Frames = list[np.ndarray]
Ask = Callable[[str], tuple[str, dict[str, Any]]]  # the answer to a question, and its metrics
Held = Callable[[], Row]  # the frames that an answer is made from, and the cache's tokens and bytes


def report_compare(
    setting: Setting,
    *,
    frames: int = 48,
    chunk_frames: int = 4,
    last: int = 4,
    questions: Sequence[str] = QUESTIONS,
) -> Report:
    """Report on the first `frames` frames (or all, if there are fewer); all answers are greedy, without penalties.

    A method that runs out of memory or context is named in `failures`; the others are still compared.

    Raises:
        ValueError: nothing is asked.
    """
    if not questions:
        raise ValueError("there is no question to compare answers to")
    taken = setting.video.frames(0, frames)
    with named("what a process does only once, which should not be the first method's", []):
        QwenInferenceWrapper(setting.model, setting.processor, **setting.pixel_bounds).native_video_inference(
            taken[:2], "?", setting.video.fps, 1
        )
    methods: dict[str, Callable[[], tuple[Ask, Held]]] = {
        NATIVE: lambda: _native(setting, taken),
        "stream, continuous": lambda: _stream(setting, taken, chunk_frames, "continuous"),
        "stream, turns": lambda: _stream(setting, taken, chunk_frames, "turns"),
        "delayed": lambda: _delayed(setting, taken, DelayedBatchInferenceEngine),
        f"last {last} frames": lambda: _delayed(setting, taken, LastNFramesEngine, num_frames=last),
    }
    rows: list[Row] = []
    failures: list[str] = []
    for number, (name, begin) in enumerate(methods.items()):
        setting.told(number, len(methods), name)
        with named(name, failures):
            rows += _measured(setting, name, begin, questions)
    judge(rows)
    return _report(setting, rows, failures, frames=len(taken), chunk_frames=chunk_frames)


def _native(setting: Setting, frames: Frames) -> tuple[Ask, Held]:
    wrapper = QwenInferenceWrapper(setting.model, setting.processor, **setting.pixel_bounds)
    fps, longest = setting.video.mean_fps(len(frames)), setting.max_new_tokens
    return lambda question: wrapper.native_video_inference(frames, question, fps, longest), lambda: {
        "frames_seen": len(frames)
    }


def _stream(setting: Setting, frames: Frames, chunk: int, wrapping: str) -> tuple[Ask, Held]:
    wrapper = QwenInferenceWrapper(setting.model, setting.processor, wrapping=wrapping, **setting.pixel_bounds)
    for start in range(0, len(frames), chunk):
        part = frames[start : start + chunk]
        wrapper.process_video_chunk(part, **setting.video.timing(start, len(part)))

    longest = setting.max_new_tokens
    return lambda question: wrapper.ask_question(question, longest), lambda: _held(wrapper.get_cache_info())


def _delayed(
    setting: Setting, frames: Frames, kind: type[DelayedBatchInferenceEngine], **options: Any
) -> tuple[Ask, Held]:
    engine: DelayedBatchInferenceEngine = kind(setting.model, setting.processor, **setting.pixel_bounds, **options)
    for index, frame in enumerate(frames):
        engine.add_frame(frame, setting.video.time_s(index))

    longest = setting.max_new_tokens
    return (
        lambda question: engine.ask(question, longest, False, repetition_penalty=1.0),
        lambda: _held(engine.get_statistics()),
    )


def _held(figures: Mapping[str, Any]) -> Row:
    return {
        "frames_seen": figures.get("total_frames", figures.get("unique_frames")),
        "cache_tokens": figures["cache_seq_length"],
        "cache_bytes": figures["cache_memory_bytes"],
    }


def _measured(
    setting: Setting, name: str, begin: Callable[[], tuple[Ask, Held]], questions: Sequence[str]
) -> list[Row]:
    meter, rows = setting.meter, []
    meter.begin()
    (ask, held), before_s = meter.timed(begin)
    for number, question in enumerate(questions, start=1):
        answer, metrics = ask(question)
        rows.append(
            {
                "method": name,
                "question": number,
                "before_s": before_s if number == 1 else None,
                "ttft_s": metrics["ttft"],
                "total_s": metrics["total_latency"],
                "output_tokens": metrics["output_tokens"],
                **held(),
                "peak_bytes": meter.peak_bytes(),
                "asked": question,
                "answer": answer,
            }
        )
    return rows


def judge(rows: list[Row]) -> None:
    """Add to each row `agreement`, `length_ratio` and `flag`: its answer against native's to the same question.

    Without an answer of native's the first two are None; so is the ratio where that is empty.
    """
    natives = {row["question"]: str(row["answer"]) for row in rows if row["method"] == NATIVE}
    for row in rows:
        native = natives.get(row["question"])
        answer = str(row["answer"])
        ratio = len(answer) / len(native) if native else None
        row["agreement"] = None if native is None else agreement(answer, native)
        row["length_ratio"] = ratio
        row["flag"] = "" if ratio is None else "short" if ratio < SHORT else "long" if ratio > LONG else ""


def agreement(answer: str, native: str) -> float:
    """Return how far two answers agree, 0 to 1: the share of words that they have in the same order (difflib's)."""
    return difflib.SequenceMatcher(None, answer.split(), native.split(), autojunk=False).ratio()


def _report(setting: Setting, rows: list[Row], failures: list[str], *, frames: int, chunk_frames: int) -> Report:
    names = list(dict.fromkeys(str(row["method"]) for row in rows))
    methods = [_summary([row for row in rows if row["method"] == name]) for name in names]
    each = [
        {name: value for name, value in row.items() if name not in ("frames_seen", "asked", "answer")} for row in rows
    ]
    answers = sorted(rows, key=lambda row: int(row["question"] or 0))
    return Report(
        "compare",
        "Stream, delayed, last frames and native side by side",
        setting.facts() | {"frames": frames, "chunk_frames": chunk_frames},
        [
            Table("Methods", methods, _METHODS_NOTE),
            Table("Questions", each, "flag: an answer shorter than half of native's, or longer than twice"),
            Table(
                "Answers", [{name: row[name] for name in ("question", "asked", "method", "answer")} for row in answers]
            ),
        ],
        [
            Bars("Time to the first token, mean of the questions", "seconds", _bars(methods, "ttft_s")),
            Bars("Whole answer, mean of the questions", "seconds", _bars(methods, "total_s")),
            Bars("Peak memory beside the model", "GB", _bars(methods, "peak_bytes", scale=1e9)),
        ],
        warnings=[_UNEVEN] * (not setting.video.is_even)
        + [
            f"question {row['question']}, {row['method']}: {row['length_ratio']:.2f} times as long as native's answer"
            for row in rows
            if row["flag"]
        ],
        failures=failures,
    )


_UNEVEN = "the frames are uneven in time: native inference is told their mean rate, the others each one's own time"
_METHODS_NOTE = (
    "before: everything before the first question, which native and the delayed engines do when they are asked; the "
    "other figures are means over the questions, the peak is of all; agreement: share of words in the same order as in "
    "native's answer, 1 for the same answer"
)


def _summary(rows: list[Row]) -> Row:
    def mean(name: str) -> float | None:
        found = [float(row[name] or 0) for row in rows if row[name] is not None]
        return fmean(found) if found else None

    return {
        "method": rows[0]["method"],
        "frames_seen": rows[-1]["frames_seen"],
        "before_s": rows[0]["before_s"],
        "ttft_s": mean("ttft_s"),
        "total_s": mean("total_s"),
        "cache_tokens": rows[-1].get("cache_tokens"),
        "cache_bytes": rows[-1].get("cache_bytes"),
        "peak_bytes": rows[-1]["peak_bytes"],
        "agreement": mean("agreement"),
        "length_ratio": mean("length_ratio"),
    }


def _bars(methods: list[Row], name: str, *, scale: float = 1.0) -> dict[str, float]:
    return {str(row["method"]): float(row[name] or 0) / scale for row in methods}
