"""The picture of a feature has the very frames that were encoded, and the norms of their patches."""

from __future__ import annotations

import importlib.util
import shutil

import decord
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from cache_store import FeatureStore, StepKey, VideoKey, describe, int8, video_value
from pipeline.encoders.longva import longva_spec
from pipeline.recipe import video_recipe
from pipeline.vision import SamplingRule
from pipeline.vision.decoding import decode_video
from tests.documents import REPOSITORY
from tests.media import write_video

SCRIPT = REPOSITORY / "examples" / "inspect" / "inspect_feature.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("inspect_feature", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data folder, and a feature of its video, made and told as a build does it."""
    folder = tmp_path_factory.mktemp("inspect")
    video = write_video(folder / "videos" / "clip.mp4", frames=24, width=160, height=96)
    spec, rule = longva_spec("small"), SamplingRule.parse("source")
    decoded = decode_video(video, sampling=rule, nframe=8, preprocess=spec.preprocess)
    key = VideoKey("videos", "clip", 8, spec.model_signature)
    value = video_value(key, spec.load("cpu").encode(decoded.pixels), video_path="clip.mp4")
    told = {"frame_indices": list(decoded.frame_indices), "decoder": decoded.decoder}
    with FeatureStore(folder / "store") as store:
        store.put(key, value, recipe=video_recipe(spec, nframe=8, sampling=rule.name), provenance=told)
        return folder, store.path_of(key)


def test_a_picture_is_drawn_and_what_is_on_it_is_told(example, built, tmp_path, capsys):
    folder, feature = built
    example.main([str(feature), "--data", str(folder / "videos"), "--frames", "3", "--out", str(tmp_path / "x.png")])
    width, height = Image.open(tmp_path / "x.png").size
    assert width > height > 400
    assert "rows [0, 3, 7] of videos: clip, [8, 36, 64] float16; " in capsys.readouterr().out


def test_a_copy_outside_of_its_store_is_refused_and_leaves_no_store(example, built, tmp_path, capsys):
    folder, feature = built
    (tmp_path / "a").mkdir()
    copy = shutil.copy(feature, tmp_path / "a" / "copy.pt")
    with pytest.raises(SystemExit):
        example.main([str(copy), "--data", str(folder / "videos")])
    assert "does not lie where a store keeps the feature of clip" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_frames_are_those_that_went_into_the_tower(example, built):
    folder, feature = built
    record = describe(feature).record
    indices = record.provenance["frame_indices"][:3]
    shown = example.seen_by_the_tower(folder / "videos" / "clip.mp4", indices, record.recipe)
    raw = decord.VideoReader(str(folder / "videos" / "clip.mp4")).get_batch(indices).asnumpy()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}, do_rescale=False, do_normalize=False
    )
    expected = processor.preprocess(list(raw), return_tensors="np")["pixel_values"]
    assert np.array_equal(np.stack(shown), expected.transpose(0, 2, 3, 1))


def test_norms_are_euclidean_without_overflow_and_without_the_class_token(example):
    features = torch.zeros(2, 5, 1024, dtype=torch.float16)
    features[:, 0] = 1e4  # the class token
    features[1, 4] = 100.0
    norms = example.patch_norms(features)
    assert norms.tolist() == [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3200.0]]]


def test_int8_features_are_drawn_too(example, built, tmp_path):
    folder, feature = built
    record = describe(feature).record
    with FeatureStore(feature.parents[1]) as store, FeatureStore(tmp_path / "half") as half:
        key = VideoKey("videos", "clip", 8, record.key["model_signature"])
        recipe = {**record.recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)}
        half.put(key, store.get(key), recipe=recipe, provenance=record.provenance)
        path = half.path_of(key)
    assert describe(path).loss is not None
    example.main([str(path), "--data", str(folder / "videos"), "--out", str(tmp_path / "x.svg")])
    assert "norm of a patch" in (tmp_path / "x.svg").read_text()


def test_what_is_no_videos_feature_is_refused(example, tmp_path, capsys):
    with FeatureStore(tmp_path) as store:
        store.put(StepKey("episode_1", 0), torch.ones(1, 1, 2), recipe={}, provenance={})
    with pytest.raises(SystemExit):
        example.main([str(tmp_path / "episode_1_vlm0.pt"), "--data", str(tmp_path)])
    assert "does not say of which frames of a video" in capsys.readouterr().err
