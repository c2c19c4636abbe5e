"""Chunks of any size give what one chunk gives where they are one video, and something else where they are turns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from consumers.streaming import chunked
from consumers.streaming.reports import SourceVideo, report_chunks


def test_continuous_chunks_give_what_one_chunk_gives(setting):
    report = report_chunks(setting, frames=8, sizes=[2, 3, 4])
    rows = report.tables[0].rows
    assert [row["chunk_frames"] for row in rows] == [2, 3, 4, 8] * 2
    continuous, turns = rows[:4], rows[4:]
    assert all(row["same_answer"] and row["score_difference"] < 1e-4 for row in continuous)
    assert len({row["cache_tokens"] for row in continuous}) == 1
    assert [row["cache_tokens"] for row in turns] == sorted((row["cache_tokens"] for row in turns), reverse=True)
    assert any(row["score_difference"] > 1e-2 for row in turns)
    assert [row["chunks"] for row in turns] == [4, 3, 2, 1]
    assert report.warnings == []
    assert len(report.tables[1].rows) == 8


def test_sizes_that_make_the_same_chunks_are_measured_once(setting):
    report = report_chunks(setting, frames=8, sizes=[2, 2, 8, 9])
    assert [row["chunk_frames"] for row in report.tables[0].rows] == [2, 8] * 2
    assert list(report.plots[0].values)[:2] == ["continuous, 2 frames", "continuous, all 8 frames"]
    assert [len(plot.values) for plot in report.plots] == [4, 4]


@pytest.mark.parametrize(("frames", "sizes"), [(1, [1]), (3, [1, 2, 3]), (5, [2, 3])])
def test_an_odd_last_frame_is_encoded_before_it_is_counted(setting, frames, sizes):
    continuous = [
        row
        for row in report_chunks(setting, frames=frames, sizes=sizes).tables[0].rows
        if row["wrapping"] == "continuous"
    ]
    tokens = {row["cache_tokens"] for row in continuous}
    even = report_chunks(setting, frames=frames + 1, sizes=[2]).tables[0].rows[0]
    assert tokens == {even["cache_tokens"]}
    assert all(row["score_difference"] < 1e-4 and row["chunks"] > 0 for row in continuous)


def test_frames_of_an_uneven_video_come_at_their_times_in_all_chunk_sizes(setting, uneven_file, monkeypatch):
    told = []
    append = chunked.VideoStreamingInference.append_video_chunk

    def listen(stream, frames, *args, timestamps=None, **options):
        told.append(timestamps)
        return append(stream, frames, *args, timestamps=timestamps, **options)

    monkeypatch.setattr(chunked.VideoStreamingInference, "append_video_chunk", listen)
    report = report_chunks(replace(setting, video=SourceVideo(uneven_file, stride=4)), frames=5, sizes=[2])
    two, two_more, last, whole = told[1:5]  # the first is the warm-up
    assert [*two, *two_more, *last] == whole == pytest.approx([0.0, 0.4, 0.8, 1.2, 9.2, 17.2])
    assert report.facts["frame_times"] == "uneven, 0.4 to 8 s apart"
    assert report.warnings == []


def test_scores_that_are_no_numbers_are_warned_of(setting, monkeypatch):
    choose = chunked.VideoStreamingInference.ask_choice

    def broken(stream, question, choices):
        best, told = choose(stream, question, choices)
        return best, told | {"scores": dict.fromkeys(choices, math.nan)}

    monkeypatch.setattr(chunked.VideoStreamingInference, "ask_choice", broken)
    warnings = report_chunks(setting, frames=4, sizes=[2]).warnings
    assert [line for line in warnings if line.startswith("continuous, chunks of 2: scores differ by nan")]


def test_a_stream_that_depends_on_its_chunks_is_warned_of(setting, monkeypatch):
    """Positions that begin anew with each chunk, as a stream without a counter of its own would have them."""
    advance = chunked.ChunkClock.advance

    def anew(clock, frames, **how):
        later, ticks = advance(clock, frames, **how)
        return later, [tick - ticks[0] for tick in ticks]

    monkeypatch.setattr(chunked.ChunkClock, "advance", anew)
    warnings = report_chunks(setting, frames=8, sizes=[2]).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("continuous, chunks of 2: scores differ by ")


def test_no_sizes_are_refused(setting):
    with pytest.raises(ValueError, match="chunk sizes"):
        report_chunks(setting, sizes=[0])


def test_a_size_that_memory_has_no_room_for_is_named_and_the_others_are_compared(setting, memory_ends):
    memory_ends(chunked.VideoStreamingInference, "ask", call=9)  # the first is the warm-up's
    report = report_chunks(setting, frames=8, sizes=[2, 3, 4])
    rows = report.tables[0].rows
    assert [row["chunk_frames"] for row in rows] == [2, 3, 4, 8, 2, 3, 4]
    assert report.failures == ["turns, chunks of 8: MemoryError"]
    assert all(row["same_answer"] for row in rows[:4])
    assert {(row["same_answer"], row["score_difference"]) for row in rows[4:]} == {(None, None)}
    assert report.warnings == []
    assert len(report.plots[0].values) == len(report.tables[1].rows) == 7
