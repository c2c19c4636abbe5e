"""The check of a checkpoint judges answers by their words, and takes a trace of a question for a failure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from consumers.streaming import (
    DelayedBatchInferenceEngine,
    QwenInferenceWrapper,
    VideoStreamingInference,
)
from consumers.streaming.qwen_runner import QwenRunner
from consumers.streaming.reports import SourceVideo, check, chunk_sizes, report_check
from consumers.streaming.reports.check import CLIP_FRAMES, QUESTIONS, clip
from pipeline.errors import MediaError

RIGHT = {expected.question: expected.right for expected in QUESTIONS}


@pytest.fixture
def one_that_sees(monkeypatch):
    """Engines whose answers about the clip are right; what the check asks of the video goes its usual way."""
    ask, choose = VideoStreamingInference.ask, VideoStreamingInference.ask_choice

    def said(question):
        return f"It is {RIGHT[question].lower()}, clearly."

    monkeypatch.setattr(
        VideoStreamingInference,
        "ask",
        lambda self, question, *args, **options: (
            (said(question), {}) if question in RIGHT else ask(self, question, *args, **options)
        ),
    )
    monkeypatch.setattr(
        VideoStreamingInference,
        "ask_choice",
        lambda self, question, choices: (RIGHT[question], {}) if question in RIGHT else choose(self, question, choices),
    )
    monkeypatch.setattr(DelayedBatchInferenceEngine, "ask", lambda _, question, *__, **___: (said(question), {}))
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", lambda _, __, asked, *___: (said(asked), {}))


def test_answers_are_judged_by_their_words_in_every_way(setting, one_that_sees, monkeypatch):
    monkeypatch.setattr(
        DelayedBatchInferenceEngine, "ask", lambda *_, **__: ("I covered it in greenery and reddish tones", {})
    )
    report = report_check(setting)
    rows = report.tables[0].rows
    assert [row["method"] for row in rows[::3]] == [
        *["stream, continuous"] * 2,
        *["stream, turns"] * 2,
        *["delayed", "native"],
    ]
    assert {row["method"] for row in rows if not row["right"]} == {"delayed"}
    assert len(report.failures) == 3
    assert report.failures[0].startswith("delayed: say: Which colour has the shape at the beginning")
    assert report.failures[0].endswith("expected Red")
    assert report.warnings == []
    assert len(report.tables) == 4


def test_random_weights_are_not_judged_but_must_leave_no_trace(setting, monkeypatch):
    ask = VideoStreamingInference.ask

    def spoils(engine, *args, **options):
        for keys, _ in engine.sequence.manager.tensors()[-1:]:
            keys[..., -1, -1] += 1e-3
        return ask(engine, *args, **options)

    monkeypatch.setattr(VideoStreamingInference, "ask", spoils)
    report = report_check(setting, has_sense=False)
    assert "right" not in report.tables[0].names
    assert "turns, round 1: the question changed the cache" in report.failures
    assert not [line for line in report.failures if "expected" in line]


def test_the_clip_is_red_and_then_green():
    frames = clip()
    assert len(frames) == CLIP_FRAMES
    middles = [tuple(frame[140, 110]) for frame in frames]
    assert middles == [(220, 0, 0)] * 8 + [(0, 160, 0)] * 8
    assert not np.array_equal(frames[0], frames[1])


def test_a_chunk_size_that_memory_has_no_room_for_is_a_failure_of_the_check(setting, monkeypatch):
    def ends(*_, **__):
        raise MemoryError

    monkeypatch.setattr(chunk_sizes, "_measured", ends)
    failures = report_check(setting, has_sense=False).failures
    assert failures[0] == "continuous, chunks of 2: MemoryError"


@pytest.mark.parametrize(
    "answer",
    [
        *["Red", "red;", "The shape is **red**.", "_Red_!", "It is red; on white.", "Its colour:red", "(red)", '"Red"'],
        *["Red-coloured", "Not green but red", "No, red.", "Not only red", "**No.** Red", "**Not** green: *red*"],
    ],
)
def test_an_answer_with_the_word_is_right(answer):
    assert check._row("native", "say:", QUESTIONS[0], answer)["right"]


@pytest.mark.parametrize(
    "answer",
    [
        *["Reddish", "It is not red.", "It isn't red", "It isn\u2019t a red one", "No red shape", "Not the red"],
        *["It is not **red**.", "_Not_ red", 'It is not "red".', "not a *red* one", "It **isn't** `red`"],
        "It is not \u201cred\u201d.",
    ],
)
def test_an_answer_without_the_word_or_that_denies_it_is_wrong(answer):
    assert not check._row("native", "say:", QUESTIONS[0], answer)["right"]


def _lets_scores_depend_on_the_chunks(monkeypatch, by):
    """Let the continuous chunks of 2 have scores that lie further from one chunk's."""
    measured = chunk_sizes._measured

    def apart(setting, frames, size, wrapping, *more):
        row = measured(setting, frames, size, wrapping, *more)
        more_by = by if (size, wrapping) == (2, "continuous") else 0.0
        return {name: value + more_by if name.startswith("score of ") else value for name, value in row.items()}

    monkeypatch.setattr(chunk_sizes, "_measured", apart)


def test_chunk_sizes_that_matter_are_a_failure(setting, monkeypatch):
    _lets_scores_depend_on_the_chunks(monkeypatch, by=0.3)
    report = report_check(setting, has_sense=False)
    assert report.failures == ["continuous, chunks of 2: scores differ by 0.3 from one chunk"]
    assert report.warnings == []


@pytest.mark.parametrize(("by", "is_failure"), [(0.3, False), (1.2, True)])
def test_what_may_be_rounding_in_bfloat16_is_warned_of(setting, monkeypatch, by, is_failure):
    _lets_scores_depend_on_the_chunks(monkeypatch, by)
    monkeypatch.setattr(type(setting.model), "dtype", torch.bfloat16)
    monkeypatch.setattr(check, "_ways", lambda _: ())
    monkeypatch.setattr(check, "report_multi_round", _memory_ends)
    report = report_check(setting, has_sense=False)
    line = f"continuous, chunks of 2: scores differ by {by} from one chunk"
    assert (line in report.failures, line in report.warnings) == (is_failure, not is_failure)


def _memory_ends(*_, **__):
    raise MemoryError


def test_a_way_that_memory_has_no_room_for_ends_none_of_the_others(setting, monkeypatch):
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", _memory_ends)
    report = report_check(setting, has_sense=False)
    assert report.failures == ["native: MemoryError"]
    assert {row["method"] for row in report.tables[0].rows} == {"stream, continuous", "stream, turns", "delayed"}
    assert len(report.tables) == 4


def test_what_the_clip_gave_is_told_before_a_damaged_video(setting, monkeypatch):
    def is_damaged(*_):
        raise MediaError("made.mp4: frame 3 cannot be decoded")

    monkeypatch.setattr(SourceVideo, "frames", is_damaged)
    report = report_check(setting, has_sense=False)
    assert [table.heading for table in report.tables] == ["A red square, then a green triangle"]
    end = "MediaError: made.mp4: frame 3 cannot be decoded"
    assert report.failures == [
        f"{part}: {end}" for part in ("continuous, questions", "turns, questions", "chunk sizes")
    ]


def test_a_video_that_is_too_short_is_refused_before_anything_is_asked(setting, video_file, monkeypatch):
    monkeypatch.setattr(check, "_ways", None)
    with pytest.raises(ValueError, match=r"the check needs 16 frames; made.mp4 gives 12, taking one of every 2"):
        report_check(replace(setting, video=SourceVideo(video_file, stride=2)))


def test_memory_that_ends_in_every_part_is_told_of_each(setting, monkeypatch):
    monkeypatch.setattr(QwenRunner, "extend", _memory_ends)
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", _memory_ends)
    report = report_check(setting)
    assert report.tables == []
    ways = ["stream, continuous", "stream, turns", "delayed", "native"]
    parts = [line.partition(":")[0] for line in report.failures]
    assert parts == [*ways, "continuous, questions", "turns, questions", "chunk sizes"]
