"""VLMEvalKit finds the cached LongVA without an edit, and hits every benchmark under whatever name it uses.

VLMEvalKit is on no package registry: this is tested against its interface, restated in `vlmevalkit_interface`.
"""

from __future__ import annotations

import json
import logging

import pytest

from consumers.evaluation import EvaluationError, FeatureMissing, LongVA_Cached
from consumers.evaluation.harnesses import vlmevalkit
from tests.consumers.evaluation.conftest import NFRAME, message
from tests.consumers.evaluation.harnesses import trees
from tests.consumers.evaluation.harnesses import vlmevalkit_interface as interface
from tests.documents import REPOSITORY


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    interface.install(monkeypatch)
    vlmevalkit.register("/cache")


@pytest.fixture
def model(tmp_path):
    config = {"class": "LongVA_Cached", "model_path": "small", "cache_dir": str(tmp_path / "store"), "nframe": NFRAME}
    (tmp_path / "store").mkdir()
    return interface.build_model_from_config({**config, "max_new_tokens": 2})


@pytest.mark.parametrize("tree", trees.VLMEVALKIT, ids=lambda tree: tree.source)
def test_every_question_of_every_benchmark_hits(tree, tmp_path, model, monkeypatch, caplog):
    import vlmeval.dataset

    dataset = vlmeval.dataset.VideoMME(tree.datasets[0], nframe=NFRAME)
    dataset.path, dataset.parts = str(tree.fill(tmp_path / "data", tmp_path / "store")), tree.datasets
    monkeypatch.setattr("pipeline.vision.decoding.decode_video", None)  # the files hold no video
    interface.infer(model, dataset)
    counts = model.longva.statistics
    assert (counts.hits, counts.misses) == (len(tree.datasets), 0)
    assert caplog.text == ""


def test_answers_are_those_of_the_uncached_model(filled, videos):
    import vlmeval.vlm

    question = [{"type": "text", "value": "Watch.", "role": "system"}, *message(videos, "long")]
    options = {"nframe": NFRAME, "max_new_tokens": 6}
    answers = [
        vlmeval.vlm.LongVA_Cached("small", enable_cache=False, **options).generate(question, dataset="Video-MME"),
        vlmeval.vlm.LongVA_Cached("small", filled, on_miss="raise", **options).generate(question, dataset="Video-MME"),
        LongVA_Cached("small", None, **options).generate_inner(question),
    ]
    assert len(set(answers)) == 1


def test_an_unknown_name_is_told_at_the_first_miss_and_only_there(model, tmp_path, videos, caplog):
    trees.VLMEVALKIT[0].fill(tmp_path / "data", tmp_path / "store")
    for text in ("Why?", "How?"):
        model.generate(message(videos, "long", text), dataset="Video-MNE")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    told = record.getMessage()
    assert "long of Video-MNE (data set Video-MNE there, 8 frames)" in told
    assert "holds Video-MME (1)" in told
    assert model.longva.statistics.misses == 2


def test_misses_can_be_errors(tmp_path, videos):
    import vlmeval.vlm

    (tmp_path / "store").mkdir()
    strict = vlmeval.vlm.LongVA_Cached("small", tmp_path / "store", nframe=NFRAME, on_miss="raise")
    with pytest.raises(FeatureMissing):
        strict.generate(message(videos, "long"), dataset="Video-MME")


@pytest.mark.parametrize(("asked", "told"), [({"nframe": 64}, "64 frames"), ({"fps": 1.0}, "frames by rate")])
def test_a_data_set_with_other_frames_is_refused_before_it_misses(model, asked, told):
    import vlmeval.dataset

    with pytest.raises(EvaluationError, match=f"asks for {told}.*nframe=8"):
        interface.infer(model, vlmeval.dataset.VideoMME("Video-MME", **asked))


def test_the_three_models_of_the_guide_are_there_with_and_without_cache_and_a_forks_own_stays():
    from vlmeval.config import supported_VLM

    assert set(supported_VLM) == {
        *("LongVA-7B", "LongVA-Temporal-v1", "LongVA-Temporal-v2"),
        *("LongVA-7B-Cached", "LongVA-Temporal-v1-Cached", "LongVA-Temporal-v2-Cached"),
    }
    assert supported_VLM["LongVA-Temporal-v1"] == "a fork's own"
    assert supported_VLM["LongVA-7B-Cached"].keywords == {"model_path": "lmms-lab/LongVA-7B-DPO", "cache_dir": "/cache"}
    with pytest.raises(EvaluationError, match="VLM_CACHE_DIR"):
        supported_VLM["LongVA-7B-Cached"](cache_dir=None)


def test_data_sets_of_128_frames_are_there_under_the_names_of_the_guide():
    from vlmeval.dataset.video_dataset_config import supported_video_datasets

    assert {name for name in supported_video_datasets if name.endswith("_128frame")} == {
        *("Video-MME_128frame", "LongVideoBench_128frame", "VideoMMMU_128frame", "MVBench_MP4_128frame"),
        *("TempCompass_128frame", "MLVU_128frame"),
    }
    made = supported_video_datasets["Video-MME_128frame"]()
    assert (type(made).__name__, made.dataset_name, made.nframe) == ("VideoMME", "Video-MME", 128)


def test_the_example_config_names_what_is_there():
    import vlmeval.dataset
    import vlmeval.vlm

    config = json.loads((REPOSITORY / "examples" / "evaluate" / "vlmevalkit.json").read_text())
    for data in config["data"].values():
        options = dict(data)
        assert getattr(vlmeval.dataset, options.pop("class"))(**options).nframe == 128
    for given in config["model"].values():
        assert given["class"] == "LongVA_Cached"
        built = interface.build_model_from_config({**given, "model_path": "small", "enable_cache": False})
        assert built.nframe == 128


def test_the_launcher_runs_their_script_with_its_arguments(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    (tmp_path / "run.py").write_text(
        "import sys, beside\nfrom vlmeval.config import supported_VLM\n"
        "print(__name__, sys.argv[1:], beside.WORD, supported_VLM['LongVA-7B-Cached'].keywords['cache_dir'])\n"
    )
    from vlmeval.config import supported_VLM

    supported_VLM.clear()
    monkeypatch.setenv("VLM_CACHE_DIR", "/elsewhere")
    monkeypatch.setattr("sys.argv", ["x"])
    monkeypatch.setattr("sys.path", ["x"])
    vlmevalkit.main([str(tmp_path / "run.py"), "--model", "LongVA-7B-Cached"])
    assert capsys.readouterr().out == "__main__ ['--model', 'LongVA-7B-Cached'] found /elsewhere\n"
    with pytest.raises(SystemExit, match="usage"):
        vlmevalkit.main(["--help"])
