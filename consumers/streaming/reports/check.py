"""Whether streaming works with a checkpoint: it sees what a made clip shows, and keeps its promises on a real video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper
from consumers.streaming.reports.chunk_sizes import WRAPPINGS, report_chunks
from consumers.streaming.reports.multi_round import report_multi_round
from consumers.streaming.reports.report import Cell, Report, Table
from consumers.streaming.reports.setting import Setting

SIDE, CLIP_FRAMES, CLIP_FPS, CHUNK_FRAMES = 224, 16, 2.0, 4
_ROUNDS = 2
Row = dict[str, Cell]


@dataclass(frozen=True)
class Expected:
    """A question about the made clip, and the word that a right answer has."""

    question: str
    choices: tuple[str, ...]
    right: str


QUESTIONS = (
    Expected("Which colour has the shape at the beginning of the video?", ("Red", "Green", "Blue"), "Red"),
    Expected("Which colour has the shape at the end of the video?", ("Red", "Green", "Blue"), "Green"),
    Expected("Which shape is shown at the end of the video?", ("Square", "Triangle", "Circle"), "Triangle"),
)


def report_check(setting: Setting, *, has_sense: bool = True) -> Report:
    """Report on the made clip, on questions that must leave no trace, and on chunk sizes that must not matter.

    The clip shows a red square, then a green triangle. Streams with both wrappings, the delayed engine and native
    inference are asked about it, freely and (streams) with choices; a wrong answer is a failure. The rest runs on the
    video. `has_sense=False`, for a model with random weights: answers are shown and not judged.

    Raises:
        ValueError: the video has fewer than 16 frames.
    """
    rows = [row for way in _ways(setting) for row in way]
    wrong = [
        f"{row['method']}: {row['question']} {row['asked']}: {row['answer']!r}, expected {row['expected']}"
        for row in rows
        if has_sense and not row["right"]
    ]
    told = [{name: value for name, value in row.items() if has_sense or name != "right"} for row in rows]
    rounds = [report_multi_round(setting, rounds=_ROUNDS, wrapping=wrapping) for wrapping in WRAPPINGS]
    chunks = report_chunks(setting, frames=_ROUNDS * 2 * CHUNK_FRAMES)
    traces = [
        Table(f"Questions that leave no trace, {wrapping}", report.tables[0].rows, report.tables[0].note)
        for wrapping, report in zip(WRAPPINGS, rounds, strict=True)
    ]
    broken = [
        f"{wrapping}, {line}" for wrapping, report in zip(WRAPPINGS, rounds, strict=True) for line in report.failures
    ]
    return Report(
        "check",
        "Does streaming work with this checkpoint?",
        setting.facts(),
        [
            Table("A red square, then a green triangle", told, "asked freely, or to choose"),
            *traces,
            chunks.tables[0],
        ],
        warnings=chunks.warnings,
        failures=[*wrong, *broken, *chunks.failures],
    )


def clip() -> list[np.ndarray]:
    """Return the made clip, uint8 [224, 224, 3] frames: a red square on white, from the middle on a green triangle."""
    return [_drawn(is_late=index >= CLIP_FRAMES // 2, shift=4 * (index % 4)) for index in range(CLIP_FRAMES)]


def _drawn(*, is_late: bool, shift: int) -> np.ndarray:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw, (left, right) = ImageDraw.Draw(picture), (50 + shift, 160 + shift)
    if is_late:
        draw.polygon([(left, 170), (right, 170), ((left + right) // 2, 60)], fill=(0, 160, 0))
    else:
        draw.rectangle([(left, 60), (right, 170)], fill=(220, 0, 0))
    return np.asarray(picture)


def _ways(setting: Setting) -> Iterator[list[Row]]:
    frames, longest = clip(), setting.max_new_tokens
    for wrapping in WRAPPINGS:
        stream = VideoStreamingInference(setting.model, setting.processor, wrapping=wrapping, **setting.pixel_bounds)
        for start in range(0, CLIP_FRAMES, CHUNK_FRAMES):
            stream.append_video_chunk(frames[start : start + CHUNK_FRAMES], CLIP_FPS)
        name = f"stream, {wrapping}"
        yield _free(name, lambda question, asked=stream: asked.ask(question, longest)[0])  # type: ignore[misc]
        yield [
            _row(name, "choose:", expected, stream.ask_choice(expected.question, expected.choices)[0])
            for expected in QUESTIONS
        ]
    delayed = DelayedBatchInferenceEngine(setting.model, setting.processor, **setting.pixel_bounds)
    for index, frame in enumerate(frames):
        delayed.add_frame(frame, index / CLIP_FPS)
    yield _free("delayed", lambda question: delayed.ask(question, longest, False, repetition_penalty=1.0)[0])
    native = QwenInferenceWrapper(setting.model, setting.processor, **setting.pixel_bounds)
    yield _free("native", lambda question: native.native_video_inference(frames, question, CLIP_FPS, longest)[0])


def _free(method: str, ask: Callable[[str], str]) -> list[Row]:
    return [_row(method, "say:", expected, ask(expected.question)) for expected in QUESTIONS]


def _row(method: str, question: str, expected: Expected, answer: str) -> Row:
    words = answer.lower().replace(".", " ").replace(",", " ").split()
    return {
        "method": method,
        "question": question,
        "asked": expected.question,
        "expected": expected.right,
        "answer": answer,
        "right": expected.right.lower() in words,
    }
