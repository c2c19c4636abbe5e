"""The consumers' benchmark compares equal things and runs; nothing here judges a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.consumers import __main__ as command
from benchmarks.consumers import evaluation, training
from benchmarks.consumers.scale import QUICK
from benchmarks.store.document import PAGE, marks, record
from consumers.evaluation import LongVA_Cached

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_every_row_is_measured_and_can_be_recorded(tmp_path, capsys):
    figures, folder = tmp_path / "rows.json", tmp_path / "folder"
    folder.mkdir()
    assert command.main(["--quick", "--folder", str(folder), "--json", str(figures)]) == 0
    fields = json.loads(figures.read_text())
    rows = {row["id"]: row for row in fields["rows"]}
    assert list(rows) == ["load-0", "load-2", "train", "load-episodes", "evaluate", "evaluate-gain"]
    assert "equal to the last bit in 8 steps" in rows["train"]["remarks"][0]
    assert [line["least_value"] for line in rows["evaluate-gain"]["lines"]] == [0.98]
    assert "FeatureDataset, packed" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    (tmp_path / PAGE).write_text((DOCS / PAGE).read_text())
    record(fields, tmp_path, name="consumers")
    page = (tmp_path / PAGE).read_text()
    first, last = marks("bench-consumers")
    assert "questions/s" in page[page.index(first) : page.index(last)]
    assert (tmp_path / "benchmarks-consumers.svg").stat().st_size > 1_000


def test_trainings_that_differ_are_not_measured(tmp_path, monkeypatch):
    losses = iter([[1.0, 0.5], [1.0, 0.25]])
    monkeypatch.setattr(training, "train", lambda *_: next(losses))
    with pytest.raises(RuntimeError, match="differ"):
        training.measure(tmp_path, QUICK)


def test_answers_that_differ_are_not_measured(tmp_path, monkeypatch):
    real = LongVA_Cached.letter_logits

    def altered(self, *arguments):
        return real(self, *arguments) + (1.0 if self.enable_cache else 0.0)

    monkeypatch.setattr(LongVA_Cached, "letter_logits", altered)
    with pytest.raises(RuntimeError, match="logits differ"):
        evaluation.measure(tmp_path, replace(QUICK, videos=1))


def test_what_a_cache_saves_is_counted_once_and_the_model_is_left_as_it_was(tmp_path):
    (video,) = evaluation._videos(tmp_path / "videos", replace(QUICK, videos=1))
    longva, removable = LongVA_Cached("small", None, nframe=8, dtype="float32"), evaluation._Seconds()
    tower, backend = longva.model.get_vision_tower(), longva.backend
    question = evaluation._question(video, 0)
    with evaluation._timed(longva, removable):
        counted = longva.letter_logits(question, "AB")
    assert removable.total_s > 0
    assert "forward" not in vars(tower)
    assert longva.backend is backend
    assert torch.equal(longva.letter_logits(question, "AB"), counted)
