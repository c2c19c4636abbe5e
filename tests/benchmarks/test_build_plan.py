"""A plan keeps a byte a sample, and a look at a store tens of bytes an entry; the benchmark of a million units runs."""

from __future__ import annotations

import json
import tracemalloc

import pyarrow
import pytest

from benchmarks.build import plan_million
from benchmarks.build.large_plan import STEPS_PER_EPISODE, checkpoint, data_set, store
from jobs import build_request
from jobs.__main__ import main

FEW, MANY = 4_000, 10_000
# Of Python's and numpy's memory; a sample alone takes a kilobyte, a dictionary's entry of a name 150 bytes.
MOST_BYTES_PER_UNIT = 120


def peak_bytes(folder, units, capsys):
    """The most that Python held at once while a plan at the limit was made, half of it stored already."""
    folder.mkdir()
    data, model = data_set(folder / "data", units), checkpoint(folder / "model")
    limit = store(folder / "store", data, model, units)
    where = ["--source", "lerobot", "--data", data, "--encoder", "qwen2_5_vl", "--model", model]
    argv = ["plan", *where, "--store", folder / "store", "--limit", limit, "--probe", 0, "--json"]
    capsys.readouterr()
    tracemalloc.start()
    try:
        assert main([str(one) for one in argv]) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = json.loads(capsys.readouterr().out)
    assert (found["todo"], found["skipped"]) == (units // 2, units // 2)
    assert found["evicts"]["datasets"]
    assert all(name.startswith("earlier_") for name in found["evicts"]["datasets"])
    return peak


def test_the_memory_of_a_plan_grows_by_little_with_each_unit(tmp_path, capsys, monkeypatch):
    # What is bounded however large the store is must not look like growth here.
    monkeypatch.setattr("cache_store.scan._NAMES_AT_ONCE", 500)
    # The process apart that looks at the encoder takes seconds to start, and its memory is not the plan's.
    monkeypatch.setattr(build_request, "_load_spec_apart", build_request._load_spec)
    peak_bytes(tmp_path / "imports", STEPS_PER_EPISODE, capsys)
    few = peak_bytes(tmp_path / "few", FEW, capsys)
    many = peak_bytes(tmp_path / "many", MANY, capsys)
    assert (many - few) / (MANY - FEW) < MOST_BYTES_PER_UNIT
    assert pyarrow.total_allocated_bytes() < 200 * MANY


@pytest.mark.slow
def test_the_benchmark_measures_each_plan_and_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    options = ["--units", str(STEPS_PER_EPISODE), "--folder", str(tmp_path / "disk")]
    assert plan_million.main([*options, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["id"] for row in figures["rows"]] == ["plan", "plan-memory"]
    assert all(line["value"] > 0 for row in figures["rows"] for line in row["lines"])
    assert "peak memory" in capsys.readouterr().out
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_data_set_of_part_of_an_episode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="whole number of episodes"):
        data_set(tmp_path, STEPS_PER_EPISODE + 1)
