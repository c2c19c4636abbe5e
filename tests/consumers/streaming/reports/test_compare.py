"""The four ways are asked the same about the same frames, and native's figures are its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from consumers.streaming import DelayedBatchInferenceEngine, QwenInferenceWrapper, StreamError, qwen_wrapper
from consumers.streaming.reports import SourceVideo, report_compare
from consumers.streaming.reports.compare import agreement, judge

ASKED = {"frames": 8, "last": 2, "questions": ["What happens?", "And then?"]}


def test_all_four_ways_answer_every_question(setting):
    report = report_compare(setting, **ASKED)
    methods, each, answers = (table.rows for table in report.tables)
    names = ["native", "stream, continuous", "stream, turns", "delayed", "last 2 frames"]
    assert [row["method"] for row in methods] == names
    assert [(row["method"], row["question"]) for row in each] == [(name, number) for name in names for number in (1, 2)]
    assert report.failures == []
    assert [row["question"] for row in answers] == [1] * 5 + [2] * 5
    by_name = {row["method"]: row for row in methods}
    assert by_name["native"]["agreement"] == by_name["stream, continuous"]["agreement"] == 1.0
    assert [row["frames_seen"] for row in methods] == [8, 8, 8, 8, 2]
    assert by_name["last 2 frames"]["cache_tokens"] < by_name["delayed"]["cache_tokens"]
    assert report.plots[0].title.startswith("Time to the first token")


def test_natives_time_to_the_first_token_ends_with_the_first_token(setting, monkeypatch):
    """On a clock that moves by one with each forward of the model."""
    forwards = [0]
    hook = setting.model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    monkeypatch.setattr(qwen_wrapper, "time", SimpleNamespace(perf_counter=lambda: float(forwards[0])))
    try:
        rows = report_compare(setting, **ASKED).tables[1].rows
    finally:
        hook.remove()
    native = [row for row in rows if row["method"] == "native"]
    assert [row["ttft_s"] for row in native] == [1.0, 1.0]
    assert all(row["total_s"] >= row["output_tokens"] > 1 for row in native)


@pytest.mark.parametrize(
    ("answers", "ratio", "flag"),
    [
        (("abcd", "a"), 0.25, "short"),
        (("abcd", "ab"), 0.5, ""),
        (("abcd", "abcdabcd"), 2.0, ""),
        (("ab", "abcda"), 2.5, "long"),
        (("", "abc"), None, ""),
    ],
)
def test_answers_of_another_length_than_natives_are_flagged(answers, ratio, flag):
    rows = [{"method": name, "question": 1, "answer": text} for name, text in zip("nm", answers, strict=True)]
    rows[0]["method"] = "native"
    judge([*rows, {"method": "native", "question": 2, "answer": "another question's"}])
    assert (rows[1]["length_ratio"], rows[1]["flag"]) == (ratio, flag)


def test_a_flagged_answer_is_warned_of(setting, monkeypatch):
    metrics = {"ttft": 1.0, "total_latency": 2.0, "output_tokens": 3}
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", lambda *_: ("a long answer", metrics))
    monkeypatch.setattr(QwenInferenceWrapper, "ask_question", lambda *_: ("short", metrics))
    warnings = report_compare(setting, frames=4, questions=["What?"]).warnings
    assert "question 1, stream, turns: 0.38 times as long as native's answer" in warnings


def test_agreement_is_the_share_of_words_in_the_same_order():
    assert agreement("a red box", "a red box") == 1.0
    assert agreement("a red box", "a blue box") == pytest.approx(2 / 3)
    assert agreement("nothing", "a red box") == 0.0


def test_a_way_that_runs_out_of_memory_is_named_and_the_others_are_compared(setting, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("simulated")

    once = iter([("", {})])
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", lambda *_: next(once, None) or fails())
    report = report_compare(setting, **ASKED)
    assert report.failures == ["native: OutOfMemoryError: simulated"]
    first = report.tables[0].rows[0]
    assert (first["method"], first["agreement"]) == ("stream, continuous", None)


def test_a_way_that_the_system_gives_no_memory_is_named_as_well(setting, monkeypatch, no_cpu_memory):
    monkeypatch.setattr(QwenInferenceWrapper, "ask_question", no_cpu_memory)
    report = report_compare(setting, **ASKED)
    assert [line.partition(": RuntimeError: [enforce fail")[0] for line in report.failures] == [
        *["stream, continuous", "stream, turns"],
    ]
    assert [row["method"] for row in report.tables[0].rows] == ["native", "delayed", "last 2 frames"]


@pytest.mark.parametrize("error", [MemoryError(), StreamError()])
def test_errors_without_words_are_named_by_their_kind(setting, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(QwenInferenceWrapper, "ask_question", fails)
    failures = report_compare(setting, **ASKED).failures
    assert failures == [f"stream, {wrapping}: {type(error).__name__}" for wrapping in ("continuous", "turns")]


def test_of_a_model_that_gives_no_answers_every_way_is_named(setting, monkeypatch):
    weight = setting.model.lm_head.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, torch.nan))
    report = report_compare(setting, **ASKED)
    names = ["native", "stream, continuous", "stream, turns", "delayed", "last 2 frames"]
    assert [line.partition(": the model's")[0] for line in report.failures] == [
        f"{name}: NonFiniteLogits" for name in names
    ]
    assert [table.rows for table in report.tables] == [[], [], []]


def test_another_error_is_a_fault_of_ours(setting, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(QwenInferenceWrapper, "ask_question", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        report_compare(setting, **ASKED)


def test_of_an_uneven_video_all_but_native_are_told_each_frames_time(setting, uneven_file, monkeypatch):
    told: dict[str, list] = {"chunks": [], "frames": [], "rates": []}
    append, add = QwenInferenceWrapper.process_video_chunk, DelayedBatchInferenceEngine.add_frame
    answer = QwenInferenceWrapper.native_video_inference
    monkeypatch.setattr(
        QwenInferenceWrapper,
        "native_video_inference",
        lambda self, frames, question, fps, longest: (
            told["rates"].append(fps),
            answer(self, frames, question, fps, longest),
        )[1],
    )
    monkeypatch.setattr(
        QwenInferenceWrapper,
        "process_video_chunk",
        lambda self, frames, **when: (told["chunks"].extend(when["timestamps"]), append(self, frames, **when))[1],
    )
    monkeypatch.setattr(
        DelayedBatchInferenceEngine,
        "add_frame",
        lambda self, frame, time_s: (told["frames"].append(time_s), add(self, frame, time_s))[1],
    )
    report = report_compare(replace(setting, video=SourceVideo(uneven_file, stride=4)), frames=6, questions=["What?"])
    times_s = [0.0, 0.4, 0.8, 1.2, 9.2, 17.2]
    assert told["chunks"] == pytest.approx(times_s * 2)  # both wrappings
    assert told["frames"] == pytest.approx(times_s * 2)  # the delayed engine, and the last frames
    assert told["rates"][1:] == [pytest.approx(5 / 17.2)]  # after the warm-up
    assert report.warnings[0].startswith("the frames are uneven in time: native")


def test_no_questions_are_refused(setting):
    with pytest.raises(ValueError, match="no question"):
        report_compare(setting, questions=[])
