"""`stats` once, watched and as a page."""

from __future__ import annotations

import json
import sys

import pytest

from jobs import stats_command


@pytest.fixture
def looks(monkeypatch):
    """End a watch with Ctrl-C after this many looks."""

    def end_after(count):
        slept = []

        def sleep(seconds):
            slept.append(seconds)
            if len(slept) == count:
                raise KeyboardInterrupt

        monkeypatch.setattr(stats_command.time, "sleep", sleep)
        return slept

    return end_after


def test_watching_prints_a_line_for_each_look_and_ends_well_with_ctrl_c(run, looks):
    slept = looks(3)
    status, out, _ = run("stats", "--watch", "0.5")
    assert status == 0
    assert slept == [0.5] * 3
    lines = out.splitlines()
    assert len(lines) == 3
    assert "written/s" not in lines[0]
    assert "0.0 written/s, 0.0 evictions/s, 0.0 hits/s" in lines[2]


def test_watching_as_json_prints_an_object_for_each_look(run, looks):
    looks(2)
    objects = [json.loads(line) for line in run("stats", "--watch", "--json")[1].splitlines()]
    assert [one["entries"] for one in objects] == [5, 5]
    assert objects[0]["time"] <= objects[1]["time"]


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_no_interval_is_refused(run, seconds):
    with pytest.raises(SystemExit) as stopped:
        run("stats", f"--watch={seconds}")
    assert stopped.value.code == 2


def test_a_page_is_written_and_the_store_only_read(run, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, said = run("stats", "--html", tmp_path / "stats.html")
    assert (status, out) == (0, "")
    assert "stats.html" in said
    assert "episode_1" in (tmp_path / "stats.html").read_text()
    assert run("stats", "--html", tmp_path / "no" / "stats.html")[0] == 2
    assert run("stats", "--html", tmp_path / "a.html", "--watch")[0] == 2


def test_a_page_without_matplotlib_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.delattr("jobs.plots", raising=False)
    for name in ("jobs.stats_page", "jobs.plots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, said = run("stats", "--html", tmp_path / "stats.html")
    assert status == 2
    assert "vlm-cache[build]" in said
