"""Chunks of any size give what one chunk gives where they are one video, and something else where they are turns."""

from __future__ import annotations

import pytest

from consumers.streaming import chunked
from consumers.streaming.reports import report_chunks


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
