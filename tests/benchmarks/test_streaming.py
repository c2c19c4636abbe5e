"""Streaming's benchmark: it runs, what it compares is equal, and what must not be copied is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.store.document import marks, record
from benchmarks.store.report import from_json
from benchmarks.streaming import __main__ as command
from benchmarks.streaming import choices, endless, snapshots
from benchmarks.streaming.scale import QUICK
from consumers.streaming import EvictionConfig, KVCacheManager

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_quick_run_measures_every_row_and_can_be_recorded(tmp_path, capsys):
    figures, folder = tmp_path / "figures.json", tmp_path / "disk"
    folder.mkdir()
    assert command.main(["--quick", "--json", str(figures), "--folder", str(folder)]) == 0
    fields = json.loads(figures.read_text())
    rows = from_json(fields)
    assert [row.id for row in rows] == [
        *["snapshot", "append", "ask", "choices", "choices-of-one-token", "endless-memory", "endless-pace"],
    ]
    assert all(line.value for row in rows for line in row.lines)
    assert {row.id for row in rows if any(line.verdict for line in row.lines)} == {"snapshot", "endless-memory"}
    assert list(folder.iterdir()) == []
    assert fields["machine"]["device"] == "cpu, one thread"
    assert "deepcopy of 16 tokens" in capsys.readouterr().out

    begin, end = marks("bench-streaming")
    (tmp_path / "benchmarks.md").write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter.\n")
    record(fields, tmp_path, name="streaming")
    assert "| **snapshot, 16 tokens" in (tmp_path / "benchmarks.md").read_text()
    assert (tmp_path / "benchmarks-streaming.svg").is_file()


def test_the_page_has_a_place_for_the_figures():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(mark in text for mark in marks("bench-streaming"))


def test_a_snapshot_that_copies_is_not_measured(monkeypatch):
    import copy

    monkeypatch.setattr(KVCacheManager, "clone", lambda _, cache: copy.deepcopy(cache))
    with pytest.raises(RuntimeError, match="copied the cache"):
        snapshots.measure(ROOT, QUICK)


def test_scores_that_differ_are_not_measured(monkeypatch):
    monkeypatch.setattr(choices, "one_by_one", lambda _, wanted: dict.fromkeys(wanted, 1.0))
    with pytest.raises(RuntimeError, match="one by one"):
        choices.measure(ROOT, QUICK)


def test_a_stream_that_keeps_too_much_is_not_measured(monkeypatch):
    monkeypatch.setattr(endless, "EvictionConfig", lambda tokens: EvictionConfig(2 * tokens))
    with pytest.raises(RuntimeError, match="allowed are 120 tokens"):
        endless.measure(ROOT, replace(QUICK, chunks=20))
