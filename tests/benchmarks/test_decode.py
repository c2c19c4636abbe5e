"""The decoding benchmark: what it compares and judges, and that it runs; nothing here judges a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import decode
from benchmarks.store.document import marks
from tests.pipeline.vision.small_videos import write_video


@pytest.fixture
def path(tmp_path):
    return write_video(tmp_path / "a.mp4", frames=150, options={"g": "25"})


@pytest.mark.parametrize("name", ["decord", "PyAV reading", "PyAV seeking", "torchcodec"])
def test_every_contestant_gives_our_frames(path, name):
    if name in ("decord", "torchcodec"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    frames = decode.ALONE[name](path)
    ours = decode.by_us(path)
    assert len(frames) == len(ours) == decode.SAMPLES
    assert all(np.array_equal(frame, other) for frame, other in zip(frames, ours, strict=True))


def test_a_contestant_with_other_frames_is_named_and_not_timed(path, monkeypatch):
    monkeypatch.setattr(decode, "TURN_S", 0.0)
    monkeypatch.setattr(
        decode, "ALONE", {"odd": lambda path: [frame ^ 1 for frame in decode.by_us(path)], "same": decode.by_us}
    )
    line = decode.measured(path, "a.mp4", rounds=1)
    assert line.note.startswith("same ")
    assert line.note.endswith("odd: other frames (by 1 of 255)")
    assert line.ratio is not None


def test_decord_must_give_our_frames_where_it_is_trusted(path, monkeypatch):
    pytest.importorskip("decord", reason="decord has no wheel for this machine")
    monkeypatch.setattr(decode, "ALONE", {"decord": lambda path: decode.by_us(path)[1:]})
    with pytest.raises(RuntimeError, match=r"a\.mp4: decord is trusted here, and gives other frames"):
        decode.measured(path, "a.mp4", rounds=1)


def test_our_time_is_judged_against_the_best_of_the_others():
    times_s = {"ours": [0.010, 0.012, 0.011], "slow": [0.02, 0.02, 0.02], "best": [0.010, 0.010, 0.010]}
    line = decode._line("a.mp4", times_s, ["torchcodec: not installed"])
    assert (line.value, line.ratio, line.verdict) == (pytest.approx(11.0), pytest.approx(1.1), "fail")
    assert line.note == "slow 1.82, best 0.91; torchcodec: not installed"
    assert decode._line("a.gif", {"ours": [0.010]}, []).verdict == ""


@pytest.mark.slow
def test_it_runs_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "TURN_S", 0.0)
    monkeypatch.delenv("VLM_CACHE_TEST_DATA", raising=False)
    assert decode.main(["--quick", "--rounds", "1", "--json", str(tmp_path / "decode.json")]) == 0
    assert "generated-files" in capsys.readouterr().out
    fields = json.loads((tmp_path / "decode.json").read_text())
    assert len(fields["rows"][0]["lines"]) == 2
    begin, end = marks("bench-decode")
    (tmp_path / "benchmarks.md").write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter.\n")
    decode.record(fields, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "### 128 frames of generated videos" in text
    assert "old" not in text
    assert text.endswith("After.\n")
