"""Training on cached features gives the losses of training that runs the model, to the last bit; nothing is timed."""

from __future__ import annotations

import json

from benchmarks import training


def test_both_trainings_are_equal_and_both_rows_are_written(tmp_path, capsys):
    assert training.main(["--quick", "--folder", str(tmp_path), "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["id"] for row in rows] == ["train", "load"]
    assert rows[0]["remarks"][0] == "the losses of both runs are equal to the last bit in 8 steps"
    assert "uncached" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
