"""The report tells each step of delayed inference, and says so where the engine does not keep its word."""

from __future__ import annotations

import pytest

from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.reports import report_delayed


def test_questions_encode_what_is_new_and_nothing_else(setting):
    report = report_delayed(setting, frames=10, more=3)
    steps, held, answers, stars = (table.rows for table in report.tables)
    assert [row["step"] for row in steps] == [
        *["add 10 frames", "ask", "ask again", "add 3 frames", "ask", "ask again"],
    ]
    assert [row["frames_encoded"] for row in steps] == [0, 10, 0, 0, 13, 0]
    assert [row["pairs_encoded"] for row in steps] == [0, 5, 0, 0, 2, 0]
    assert [row["pairs_reused"] for row in steps] == [0, 0, 0, 0, 5, 0]
    assert 0 == held[0]["cache_tokens"] < held[1]["cache_tokens"] == held[2]["cache_tokens"] < held[4]["cache_tokens"]
    assert all(0 < row["ttft_s"] <= row["total_s"] for row in steps if row["ttft_s"] is not None)
    assert report.failures == []
    said = [row["answer"] for row in answers]
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert stars[0]["reason"] == "first frame"


def test_an_engine_that_encodes_each_time_is_told_of(setting, monkeypatch):
    ask = DelayedBatchInferenceEngine.ask

    def ask_anew(engine, *args, **options):
        engine._sequence = None
        return ask(engine, *args, **options)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "ask", ask_anew)
    failures = report_delayed(setting, frames=4, more=2).failures
    assert [line.partition(":")[0] for line in failures] == ["step 3, ask again", "step 6, ask again"]


def test_an_engine_that_encodes_known_pairs_with_the_new_ones_is_told_of(setting, monkeypatch):
    encode = DelayedBatchInferenceEngine._encode

    def and_forget(engine):
        figures = encode(engine)
        engine._features.clear()
        return figures

    monkeypatch.setattr(DelayedBatchInferenceEngine, "_encode", and_forget)
    failures = report_delayed(setting, frames=5, more=2).failures  # the fifth frame waits for its partner
    assert failures == ["step 5, ask: encoded 4 pairs of frames, of which 2 are new"]


def test_a_video_that_is_too_short_is_refused_with_what_it_has(setting):
    with pytest.raises(ValueError, match=r"made.mp4 gives 24 frames.* needs 50 \+ 10"):
        report_delayed(setting)


def test_what_was_measured_before_memory_ended_is_told_with_the_step_that_ended_it(setting, memory_ends):
    memory_ends(DelayedBatchInferenceEngine, "_encode", call=2)
    report = report_delayed(setting, frames=10, more=3)
    steps, _, answers, _ = (table.rows for table in report.tables)
    assert [row["step"] for row in steps] == ["add 10 frames", "ask", "ask again", "add 3 frames"]
    assert len(answers) == 2
    assert report.failures == ["step 5, ask: MemoryError"]


def test_memory_that_ends_before_the_first_answer_leaves_no_report(setting, memory_ends):
    memory_ends(DelayedBatchInferenceEngine, "_encode", call=1)
    with pytest.raises(MemoryError):
        report_delayed(setting, frames=10, more=3)
