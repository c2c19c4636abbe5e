"""The builds' benchmark: what is steady, what the shares are of, and that it runs; nothing here judges a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_build
from benchmarks.build import __main__ as command
from benchmarks.build import lanes, pace, parity
from benchmarks.build.device_stage import MOVED, WRITTEN
from benchmarks.build.encoders import NoOpSpec
from benchmarks.build.samples import EmptySteps
from benchmarks.build.scale import QUICK, Scale
from benchmarks.store.document import marks, record
from benchmarks.store.report import from_json
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes import BuildReport, LaneProgress, Progress

ROOT = Path(__file__).parents[2]


def progress(seconds: float, *done: int) -> Progress:
    of_lanes = tuple(
        LaneProgress(f"lane {number}", "running", "cpu", count, 1, 0.0, 0.0, 0.0, 0.0, 0, 0)
        for number, count in enumerate(done)
    )
    return Progress(10**6, sum(done), 0, 0, 0, seconds, None, of_lanes, None)


def test_steady_is_from_when_every_process_works(monkeypatch):
    at_work = []
    monkeypatch.setattr(pace, "processes", lambda: at_work)
    watch = pace._Watch(2, 3, Scale(window_s=10.0, warm_s=1.0))
    for seconds, *done in ((1.0, 0, 0), (2.0, 5, 0), (3.0, 90, 0), (4.0, 100, 1), (5.0, 110, 9)):
        watch.on_progress(progress(seconds, *done))
    assert watch.first_unit.seconds == 2.0
    at_work += [pace.Process("decoders", 1.0)] * 3
    for seconds, *done in ((6.0, 120, 9), (6.9, 120, 10), (7.5, 120, 10)):
        watch.on_progress(progress(seconds, *done))
    assert watch.first is None, "too early, and then no unit has ended"
    watch.on_progress(progress(8.0, 120, 11))
    watch.on_progress(progress(17.5, 200, 100))
    assert watch.should_stop() is None
    watch.on_progress(progress(18.5, 220, 130))
    assert watch.should_stop() == pace.MEASURED
    watch.on_progress(progress(20.0, 230, 140))
    assert (watch.first.done, watch.last.done, watch.last.seconds) == (131, 350, 18.5)
    assert watch.first.cpu_s == {"decoders": 3.0}


def test_cpu_time_is_told_by_kind_of_process():
    before = pace.cpu_seconds()["driver"]
    sum(range(3_000_000))
    child = subprocess.Popen(
        [sys.executable, "-c", "sum(range(20_000_000)); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    found = pace.cpu_seconds()
    child.communicate(b"\n")
    assert found["driver"] > before
    assert found["Ray itself"] > 0, "whatever else this process has started"


def test_a_share_of_lanes_is_of_as_many_times_one_lane():
    line = lanes._line(4, {1: [20.0, 10.0, 20.0], 4: [72.0, 40.0, 76.0]})
    assert (line.value, line.ratio, line.ratio_low, line.ratio_high, line.verdict) == (72.0, 0.95, 0.9, 1.0, "pass")
    assert lanes._line(1, {1: [20.0]}).verdict == ""


def test_equal_bits_are_counted_and_differences_named():
    reference = torch.tensor([1.0, 2.0, -0.0, 4.0])
    line = parity._line("x", reference, torch.tensor([1.0, 2.5, 0.0, 4.0]))
    assert line.value == 50.0, "a zero of another sign has other bits"
    assert line.note == "max abs error 0.5, largest value 4"
    assert parity._line("x", reference, reference).value == 100.0


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (
            BuildReport(failed=[UnitFailure("video_1", "decode", "no video", ErrorClass.BAD_MEDIA)]),
            "video_1 failed: no video",
        ),
        (BuildReport(done=3), "before 0.6 s of steady work"),
    ],
)
def test_a_failed_or_too_short_build_is_not_measured(report, message, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "run_build", lambda *_, **__: report)
    with pytest.raises(RuntimeError, match=message):
        pace.build_pace(EmptySteps(3), NoOpSpec(), tmp_path / "store", QUICK)


@pytest.mark.slow
def test_a_quick_run_measures_every_row_and_leaves_nothing_behind(tmp_path, capsys, local_ray):
    figures, folder = tmp_path / "figures.json", tmp_path / "disk"
    folder.mkdir()
    assert command.main(["--quick", "--json", str(figures), "--folder", str(folder)]) == 0
    fields = json.loads(figures.read_text())
    rows = from_json(fields)
    assert [row.id for row in rows if row.id != "scheduling-cpu"] == list(command.ROWS)
    assert all(line.value for row in rows for line in row.lines if row.id != "scheduling-cpu")
    judged = {row.id for row in rows if any(line.verdict for line in row.lines)}
    assert judged == {"encoder-bound", "scheduling", "lanes"}
    assert list(folder.iterdir()) == []
    assert "bare model loop" in capsys.readouterr().out

    begin, end = marks("bench-build")
    (tmp_path / "benchmarks.md").write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter.\n")
    record(fields, tmp_path, name="build")
    text = (tmp_path / "benchmarks.md").read_text()
    assert "old" not in text
    assert "| **build on 2 lanes** |" in text
    assert (tmp_path / "benchmarks-build.svg").is_file()


def test_the_page_has_a_place_for_the_figures():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(mark in text for mark in marks("bench-build"))


def test_a_page_of_some_rows_only_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(["--quick", "--only", "lanes", "--record"])
    assert refused.value.code == 2
    assert "without --only" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gpu_script_runs_on_the_cpu_with_a_build_on_ray(tmp_path, capsys, local_ray):
    assert gpu_build.main(["--cpu", "--folder", str(tmp_path), "--json", str(tmp_path / "gpu.json")]) == 0
    rows = from_json(json.loads((tmp_path / "gpu.json").read_text()))
    assert [row.id for row in rows] == ["parity", "batches", "encoder-stage", "build-on-gpu"]
    assert all(line.value == 100.0 for line in rows[0].lines), "the same device twice"
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_the_gpu_script_needs_neither_ray_nor_pyav(tmp_path):
    program = (
        "import sys; sys.modules.update(ray=None, av=None, decord=None); from benchmarks.gpu_build import main; main()"
    )
    figures = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", program, "--cpu", "--folder", str(tmp_path), "--json", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not installed: ray, av;" in done.stdout
    *_, stage = from_json(json.loads(figures.read_text()))
    assert [line.name for line in stage.lines if line.value] == ["bare model loop", MOVED, WRITTEN]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_where_there_is_no_gpu(capsys):
    with pytest.raises(SystemExit) as refused:
        gpu_build.main([])
    assert refused.value.code == 2
    assert "--cpu" in capsys.readouterr().err
