"""`vlm-cache check`: every check passes on a sound build, and fails where the build is not what it says."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from consumers.evaluation import EvaluationError, longva
from consumers.evaluation.longva_backends import require_backend
from jobs import parity_checks
from jobs.__main__ import main
from pipeline.encoders.vision_tower import TowerEncoder
from pipeline.vision.open_video import READERS
from pipeline.vision.pixel_table import PixelTable
from tests.consumers.evaluation.conftest import one_thread  # noqa: F401 - a fixture
from tests.media import scramble, write_video

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run `check` on a small video; returns the status and the outcomes by check."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", frames=12, seed=1)

    def run_one(*arguments):
        status = main(["check", "--model", "small", "--video", "clip.mp4", "--nframe", "4", "--json", *arguments])
        report = json.loads(capsys.readouterr().out)
        return status, {one["name"]: one["outcome"] for one in report["checks"]}, report

    return run_one


def test_all_checks_pass_and_the_report_says_on_what(run, tmp_path):
    status, outcomes, report = run("--report", "here")
    assert (status, set(outcomes.values())) == (0, {"passed"}), report
    assert len(outcomes) == 5
    assert json.loads((tmp_path / "here/check.json").read_text()) == report
    text = (tmp_path / "here/check.md").read_text()
    assert text.startswith("# Parity check: 5 passed, 0 failed, 0 skipped\n")
    assert f"torch {torch.__version__}" in text
    assert report["recipe_fingerprint"] in text
    assert all(f"| {name} | **passed** |" in text for name in outcomes)


def test_without_a_folder_it_goes_into_results(run, tmp_path):
    run()
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("check_")


def test_two_that_begin_in_one_second_have_a_folder_each(run, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *args: "20260314_092301")
    run()
    run("--nframe", "3")
    names = ("check_20260314_092301", "check_20260314_092301_2")
    recipes = [json.loads((tmp_path / "results" / name / "check.json").read_text())["recipe"] for name in names]
    assert [recipe["frames"]["nframe"] for recipe in recipes] == [4, 3]


def test_a_tower_has_no_answers_to_check(run):
    status, outcomes, _ = run("--encoder", "huggingface")
    assert status == 0
    assert outcomes["a model answers the same with the cache"] == "skipped"
    assert list(outcomes.values()).count("passed") == 4


@pytest.mark.parametrize("height", [1, 3, 4])
def test_rows_are_not_taken_for_channels(run, tmp_path, height):
    noise = np.random.default_rng(0).integers(0, 256, (2, height, 8, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    first.save(tmp_path / "flat.gif", save_all=True, append_images=[second], duration=100)
    _, outcomes, report = run("--video", "flat.gif")
    assert outcomes["preprocessing is the processor's own"] == "passed", report


class TestWhatIsWrongFails:
    def test_a_tower_that_is_not_the_models(self, run, monkeypatch):
        encode = TowerEncoder.encode
        monkeypatch.setattr(TowerEncoder, "encode", lambda *args: encode(*args) + 1)
        status, outcomes, _ = run()
        assert status == 1
        assert outcomes["a model answers the same with the cache"] == "failed"

    def test_a_tower_that_gives_other_bits_each_time(self, run, monkeypatch):
        encode = TowerEncoder.encode
        monkeypatch.setattr(TowerEncoder, "encode", lambda *args: encode(*args) + torch.rand(()).half())
        assert run()[1]["the tower gives the same bits again"] == "failed"

    def test_preprocessing_that_is_not_the_processors(self, run, monkeypatch):
        call = PixelTable.__call__
        monkeypatch.setattr(PixelTable, "__call__", lambda *args: call(*args).nextafter(torch.tensor(9.0)))
        assert run()[1]["preprocessing is the processor's own"] == "failed"

    def test_a_decoder_that_gives_other_frames(self, run, monkeypatch):
        class Other(READERS["decord"]):
            def frames(self, indices):
                return (frame ^ 1 for frame in super().frames(indices))

        monkeypatch.setitem(READERS, "decord", Other)
        assert run()[1]["decoders agree"] == "failed"

    def test_a_store_that_changes_a_bit(self, run, monkeypatch):
        value = parity_checks.video_value
        monkeypatch.setattr(
            parity_checks, "video_value", lambda key, features, **more: value(key, features.neg(), **more)
        )
        assert run()[1]["the store gives back what it was given"] == "failed"


def test_a_report_that_cannot_be_written_is_still_printed(run, tmp_path):
    (tmp_path / "here" / "check.md").mkdir(parents=True)
    status, outcomes, _ = run("--report", "here")
    assert (status, set(outcomes.values())) == (1, {"passed"})


def test_a_broken_video_fails_every_check_that_needs_it(run, tmp_path):
    scramble(tmp_path / "broken.mp4")
    status, outcomes, report = run("--video", "broken.mp4")
    assert status == 1
    assert "passed" not in outcomes.values()
    assert all("broken.mp4" in one["found"] for one in report["checks"])


def test_a_checkpoint_that_longva_cannot_load_fails(run, monkeypatch):
    def refuse(*_, **__):
        raise EvaluationError("small cannot be loaded")

    monkeypatch.setattr(longva, "load_backend", refuse)
    assert run()[1]["a model answers the same with the cache"] == "failed"


def test_a_model_that_nothing_here_loads_is_skipped_with_what_it_needs(run, monkeypatch):
    monkeypatch.setattr(parity_checks, "require_backend", lambda _: require_backend("lmms-lab/LongVA-7B"))
    status, _, report = run()
    assert (status, report["checks"][-1]["outcome"]) == (0, "skipped")
    assert "package longva" in report["checks"][-1]["found"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--video", "nowhere.mp4"], "is no file"),
        (["--video", __file__, "--sampling", "some"], "--sampling"),
        (["--video", __file__, "--model", "no such model"], "no checkpoint folder"),
        (["--video", __file__, "--report", __file__], "File exists"),
        (["--video", __file__, "--device", "nonsense"], "nonsense"),
    ],
)
def test_what_cannot_work_is_refused(arguments, said, capsys):
    assert main(["check", "--model", "small", *arguments]) == 2
    assert said in capsys.readouterr().err
