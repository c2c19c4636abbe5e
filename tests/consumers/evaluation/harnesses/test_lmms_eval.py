"""lmms-eval finds `longva_cached` by its entry point, answers as without a cache, and hits under every task's name.

Against the real package where it is installed (`make test-harnesses` installs 0.7.3); where it is not, only the names.
"""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch

from cache_store import FeatureStore, RecipeMismatch, model_signature
from consumers.evaluation import CachedVisionTower, EvaluationError
from consumers.evaluation.small_longva import SmallLongVA
from consumers.evaluation.stored_features import find_video_id
from tests.consumers.evaluation.conftest import NFRAME, build
from tests.consumers.evaluation.harnesses import longva_package, trees
from tests.documents import REPOSITORY


@pytest.fixture(scope="module")
def tower():
    return SmallLongVA()


@pytest.mark.parametrize("tree", trees.LMMS_EVAL, ids=lambda tree: tree.source)
def test_every_task_of_every_benchmark_hits(tree, tmp_path, tower):
    path = tree.fill(tmp_path / "data", tmp_path / "store")
    cache = CachedVisionTower(tower, tmp_path / "store", dataset="", nframe=NFRAME)
    assert cache.model_signature == model_signature("small", -2)
    for task in tree.datasets:
        with cache.request(find_video_id(cache.stored, {"value": str(path)}, task), dataset=task) as request:
            assert request.is_hit


def test_the_entry_point_leads_to_the_manifest():
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\n' in text
    assert 'vlm-cache = "consumers.evaluation.harnesses.lmms_eval_entry:manifests"\n' in text
    from consumers.evaluation.harnesses.lmms_eval_entry import manifests

    assert callable(manifests)


@pytest.fixture
def harness(monkeypatch):
    """The class of the model, imported beside lmms-eval's own."""
    pytest.importorskip("lmms_eval.models.registry_v2", reason="lmms-eval is not installed; see make test-harnesses")
    for name in ("lmms_eval.models.simple.longva", "consumers.evaluation.harnesses.lmms_eval_longva"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    longva_package.install(monkeypatch)
    from consumers.evaluation.harnesses.lmms_eval_longva import LongVACached

    monkeypatch.setattr("lmms_eval.models.simple.longva.tqdm", lambda **_: SimpleNamespace(update=int, close=int))
    return LongVACached


@pytest.fixture(scope="session")
def built(videos, tmp_path_factory):
    root = tmp_path_factory.mktemp("lmms") / "store"
    build(root, videos, sampling="longva")
    return root


@pytest.fixture
def make(harness, tmp_path):
    options = {"pretrained": longva_package.write_checkpoint(tmp_path / "checkpoint"), "conv_template": "qwen_1_5"}
    options |= {"device": "cpu", "device_map": "auto", "max_frames_num": NFRAME, "model_name": "llava_qwen"}

    def make_one(kind=harness, **more):
        made = kind(**options, **more)
        made.task_dict = {"videomme": {"test": {0: "long", 1: "short"}}}
        return made

    return make_one


def requests(videos):
    found = []
    for number, name in enumerate(("long", "short")):
        kwargs = {"until": ["\n"], "max_new_tokens": 4}
        path = str(videos[name][0])
        arguments = (f"{name}: what happens?", kwargs, lambda doc, path=path: [path], number, "videomme", "test")
        found.append(SimpleNamespace(args=arguments))
    return found


def test_the_registry_resolves_the_model(harness, monkeypatch):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    entry = importlib.metadata.EntryPoint(
        "vlm-cache", "consumers.evaluation.harnesses.lmms_eval_entry:manifests", "lmms_eval.models"
    )
    monkeypatch.setattr(ModelRegistryV2, "_select_entry_points", staticmethod(lambda group: [entry]))
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests(overwrite=True)
    assert registry.list_model_names() == ["longva_cached"]
    assert registry.get_model_class("longva_cached") is harness


def test_answers_are_those_of_lmms_evals_own_longva(make, built, videos, monkeypatch):
    from lmms_eval.models.simple.longva import LongVA

    wanted = make(LongVA, video_decode_backend="decord").generate_until(requests(videos))
    cached = make(cache_dir=str(built), on_miss="raise")
    monkeypatch.setattr("lmms_eval.models.simple.longva.VideoReader", None)
    assert cached.generate_until(requests(videos)) == wanted
    assert (cached._cache.statistics.hits, cached._cache.statistics.misses) == (2, 0)


def test_misses_and_echoes_compute_live_and_give_the_same(make, built, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    missing = make(cache_dir=str(tmp_path / "empty"))
    echoing = make(cache_dir=str(built), echo="1")
    assert missing.generate_until(requests(videos)) == echoing.generate_until(requests(videos))
    assert missing._cache.statistics.misses == 2
    assert (echoing._cache.statistics.echoes, echoing._cache.statistics.echo_differences) == (2, 0)


def test_features_of_another_sampling_rule_are_refused(make, filled, videos):
    with pytest.raises(RecipeMismatch, match="sampling"):
        make(cache_dir=str(filled)).generate_until(requests(videos))


def test_a_video_that_cannot_be_read_is_an_error_and_no_answer(make, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    (asked, _) = requests(videos)
    longva = make(cache_dir=str(tmp_path / "empty"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = SimpleNamespace(args=(*asked.args[:2], lambda doc: [str(tmp_path / "broken.mp4")], *asked.args[3:]))
    with pytest.raises(EvaluationError, match=r"broken\.mp4 cannot be read"):
        longva.generate_until([broken])
    assert longva._request is None


def test_another_decoder_is_refused(harness, built):
    with pytest.raises(EvaluationError, match="decord"):
        harness(str(built), video_decode_backend="pyav")


def test_the_store_is_left_as_it_was(make, built, videos):
    with FeatureStore(built) as store:
        before = sorted(map(str, store.keys()))
    make(cache_dir=str(built)).generate_until(requests(videos))
    with FeatureStore(built) as store:
        assert sorted(map(str, store.keys())) == before
        assert torch.is_tensor(store.get(next(iter(store.keys())))["vision_features"])
