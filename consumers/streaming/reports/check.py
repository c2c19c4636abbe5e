"""Whether streaming works with a checkpoint: it sees what a made clip shows, and keeps its promises on a real video."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper
from consumers.streaming.reports.chunk_sizes import NEARLY_EQUAL, WRAPPINGS, lines_apart, report_chunks
from consumers.streaming.reports.failures import named
from consumers.streaming.reports.multi_round import report_multi_round
from consumers.streaming.reports.report import Cell, Report, Table
from consumers.streaming.reports.setting import Setting
from consumers.streaming.video_sequence import Wrapping

SIDE, CLIP_FRAMES, CLIP_FPS, CHUNK_FRAMES = 224, 16, 2.0, 4
_ROUNDS = 2
VIDEO_FRAMES = _ROUNDS * 2 * CHUNK_FRAMES  # of the video
_WORD = re.compile(r"[^\W_]+")  # `_red_` is a word in Markdown
_APART = r"[\s*_`\"'“”‘’]+"  # spaces between words, with Markdown and quotes
_DENIED = re.compile(rf"(?:(?<![^\W_])(?:not|no)|n['’]t){_APART}(?:(?:an?|the){_APART})?[^\W_]+")
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
    video. `has_sense=False`, for a model with random weights: answers are shown and not judged. What runs out of memory
    or context, or meets a damaged frame, is named in `failures`, and the others are still tried.

    Raises:
        ValueError: the video has fewer than 16 frames.
    """
    video = setting.video
    if video.num_frames < VIDEO_FRAMES:
        raise ValueError(
            f"the check needs {VIDEO_FRAMES} frames; {video.path.name} gives {video.num_frames}, taking one of every "
            f"{video.stride}; take a smaller stride or a longer video"
        )
    rows: list[Row] = []
    tables: list[Table] = []
    warnings: list[str] = []
    failures: list[str] = []
    for name, asked in _ways(setting):
        with named(name, failures):
            rows.extend(asked)
    failures += [
        f"{row['method']}: {row['question']} {row['asked']}: {row['answer']!r}, expected {row['expected']}"
        for row in rows
        if has_sense and not row["right"]
    ]
    if rows:
        told = [{name: value for name, value in row.items() if has_sense or name != "right"} for row in rows]
        tables.append(Table("A red square, then a green triangle", told, "asked freely, or to choose"))
    for wrapping in WRAPPINGS:
        with named(f"{wrapping}, questions", failures):
            rounds = report_multi_round(setting, rounds=_ROUNDS, wrapping=wrapping)
            first = rounds.tables[0]
            tables.append(Table(f"Questions that leave no trace, {wrapping}", first.rows, first.note))
            failures += [f"{wrapping}, {line}" for line in rounds.failures]
    with named("chunk sizes", failures):
        chunks = report_chunks(setting, frames=VIDEO_FRAMES)
        tables.append(chunks.tables[0])
        broken = lines_apart(chunks.tables[0].rows, more_than=_most_rounding(setting))
        warnings += [line for line in chunks.warnings if line not in broken]
        failures += [*chunks.failures, *broken]
    title = "Does streaming work with this checkpoint?"
    return Report("check", title, setting.facts(), tables, warnings=warnings, failures=failures)


def _most_rounding(setting: Setting) -> float:
    """Return by how much scores may differ: eight steps of the dtype between logits of 16 and 32, 1.0 in bfloat16."""
    return max(NEARLY_EQUAL, 8 * 16 * torch.finfo(setting.model.dtype).eps)


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


def _ways(setting: Setting) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield each way's name and its answers, which are made as they are taken."""
    frames, longest = clip(), setting.max_new_tokens
    for wrapping in WRAPPINGS:
        name = f"stream, {wrapping}"
        yield name, _streamed(name, setting, frames, wrapping)
    yield "delayed", _delayed(setting, frames)
    native = QwenInferenceWrapper(setting.model, setting.processor, **setting.pixel_bounds)
    yield (
        "native",
        _free("native", lambda question: native.native_video_inference(frames, question, CLIP_FPS, longest)[0]),
    )


def _streamed(name: str, setting: Setting, frames: list[np.ndarray], wrapping: Wrapping) -> Iterator[Row]:
    stream = VideoStreamingInference(setting.model, setting.processor, wrapping=wrapping, **setting.pixel_bounds)
    for start in range(0, CLIP_FRAMES, CHUNK_FRAMES):
        stream.append_video_chunk(frames[start : start + CHUNK_FRAMES], CLIP_FPS)
    yield from _free(name, lambda question: stream.ask(question, setting.max_new_tokens)[0])
    for expected in QUESTIONS:
        yield _row(name, "choose:", expected, stream.ask_choice(expected.question, expected.choices)[0])


def _delayed(setting: Setting, frames: list[np.ndarray]) -> Iterator[Row]:
    engine = DelayedBatchInferenceEngine(setting.model, setting.processor, **setting.pixel_bounds)
    for index, frame in enumerate(frames):
        engine.add_frame(frame, index / CLIP_FPS)
    longest = setting.max_new_tokens
    yield from _free("delayed", lambda question: engine.ask(question, longest, False, repetition_penalty=1.0)[0])


def _free(method: str, ask: Callable[[str], str]) -> Iterator[Row]:
    for expected in QUESTIONS:
        yield _row(method, "say:", expected, ask(expected.question))


def _row(method: str, question: str, expected: Expected, answer: str) -> Row:
    return {
        "method": method,
        "question": question,
        "asked": expected.question,
        "expected": expected.right,
        "answer": answer,
        "right": expected.right.lower() in _WORD.findall(_DENIED.sub(" ", answer.lower())),
    }
