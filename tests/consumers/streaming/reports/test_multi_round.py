"""Questions leave no trace in any round, and a trace is told of; kept answers make the cache grow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from consumers.streaming import VideoStreamingInference
from consumers.streaming.reports import SourceVideo, multi_round, report_multi_round
from consumers.streaming.reports.multi_round import cache_digest
from pipeline.errors import MediaError
from tests.consumers.streaming.streams import append_chunks, video

ROUNDS = {"rounds": 3, "chunks_per_round": 1}


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
def test_no_question_of_any_round_leaves_a_trace(setting, wrapping):
    report = report_multi_round(setting, **ROUNDS, wrapping=wrapping)
    asked, kept, answers = (table.rows for table in report.tables)
    assert [row["round"] for row in asked] == [1, 2, 3]
    assert [row["frames"] for row in asked] == [4, 8, 12]
    assert all(row["unchanged"] and row["as_never_asked"] for row in asked)
    assert report.failures == []
    for one, other in pairwise(asked):
        assert one["cache_tokens"] < other["cache_tokens"]
    for beside, part in zip(asked, kept, strict=True):
        assert part["kept_tokens"] > part["output_tokens"]
        assert part["cache_tokens"] > beside["cache_tokens"]
    assert {row["choice"] for row in answers if not row["kept"]} <= {"Yes", "No"}
    assert len(answers) == 6


@pytest.mark.parametrize(("method", "what"), [("ask", "question"), ("ask_choice", "choice")])
def test_a_question_that_leaves_a_trace_is_told_of(setting, monkeypatch, method, what):
    real = getattr(VideoStreamingInference, method)

    def spoils(engine, *args, **options):
        for keys, _ in engine.sequence.manager.tensors()[-1:]:
            keys[..., -1, -1] += 1e-3
        return real(engine, *args, **options)

    monkeypatch.setattr(VideoStreamingInference, method, spoils)
    failures = report_multi_round(setting, **ROUNDS).failures
    assert f"round 1: the {what} changed the cache" in failures
    assert "round 2: the cache is not that of a stream that was never asked" in failures


def test_the_digest_sees_one_bit_of_any_tensor_of_any_dtype(eager):
    model, processor = eager
    engine = VideoStreamingInference(model, processor)
    append_chunks(engine, video(4), 2)
    before = cache_digest(engine)
    for pair in engine.sequence.manager.tensors():
        for tensor in pair:
            tensor.view(torch.int32)[0, 0, 0, 0] ^= 1
            assert cache_digest(engine) != before
            tensor.view(torch.int32)[0, 0, 0, 0] ^= 1
    assert cache_digest(engine) == before
    for layer in engine.sequence.manager.cache.layers:
        layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
    assert cache_digest(engine) != before


def test_a_video_that_is_too_short_is_refused_with_what_it_has(setting):
    with pytest.raises(ValueError, match=r"4 rounds need at least one question and 32 frames; made.mp4 gives 24"):
        report_multi_round(setting, rounds=4)


@pytest.mark.parametrize(
    ("call", "rounds", "failures"),
    [
        (3, (2, 0), ["questions beside the stream, round 3: MemoryError", "answers kept, round 1: MemoryError"]),
        (6, (3, 2), ["answers kept, round 3: MemoryError"]),
    ],
)
def test_what_was_measured_before_memory_ended_is_told_with_the_round_that_ended_it(
    setting, memory_ends, call, rounds, failures
):
    memory_ends(VideoStreamingInference, "ask", call=call)
    report = report_multi_round(setting, **ROUNDS)
    assert tuple(len(table.rows) for table in report.tables[:2]) == rounds
    assert len(report.tables[2].rows) == sum(rounds)
    assert report.failures == failures


def test_what_was_measured_before_a_damaged_frame_is_told(setting, monkeypatch):
    def damaged(video, start, count):
        if start >= 8:
            raise MediaError("made.mp4: not decodable")
        return real(video, start, count)

    real = SourceVideo.frames
    monkeypatch.setattr(SourceVideo, "frames", damaged)
    report = report_multi_round(setting, **ROUNDS)
    assert [len(table.rows) for table in report.tables] == [2, 2, 4]
    ended = "round 3: MediaError: made.mp4: not decodable"
    assert report.failures == [f"questions beside the stream, {ended}", f"answers kept, {ended}"]


def test_answers_are_kept_in_what_memory_the_questions_beside_the_stream_have_left(setting, monkeypatch):
    free = []
    real = multi_round._Rounds.kept

    def listen(made, stream, number, question):
        free.append(made._asked.get_cache_info()["cache_memory_bytes"])
        return real(made, stream, number, question)

    monkeypatch.setattr(multi_round._Rounds, "kept", listen)
    report_multi_round(setting, **ROUNDS)
    assert free == [0, 0, 0]
