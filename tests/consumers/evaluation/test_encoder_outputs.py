"""Models that take encoded media instead of pixels get the stored ones, with bitwise the same logits."""

from __future__ import annotations

import pytest
import torch

from cache_store import RecipeMismatch
from consumers.evaluation import (
    CachedEncoderOutputs,
    EchoDifference,
    EvaluationError,
    FeatureMissing,
    FeatureUnfit,
    NoVisionTower,
)
from pipeline.encoders import small_models
from pipeline.vision.preprocessing import QwenImagePreprocess
from tests.consumers.evaluation.conftest import pictures
from tests.consumers.evaluation.test_families import FRAMES, SIDE, llava_onevision

VIDEO, START, END = 261, 258, 259


def qwen_media(seed=0):
    frames = pictures(4, side=56, seed=seed)
    patches, grid = QwenImagePreprocess.from_config(small_models.QWEN_PROCESSOR).patchify_video(frames)
    return {"pixel_values_videos": patches, "video_grid_thw": grid}


def qwen_ids():
    tokens = 2 * 4  # two pairs of frames, 4 x 4 patches merged 2 x 2
    ids = torch.tensor([[5, START, *[VIDEO] * tokens, END, 7]])
    return {"input_ids": ids, "mm_token_type_ids": (ids == VIDEO).int() * 2}


@pytest.fixture(scope="module")
def qwen():
    return small_models.qwen_with_head()


def make_cache(model, root, **options):
    return CachedEncoderOutputs(model, root, dataset="set", nframe=4, model_signature="x" * 8, **options)


@torch.inference_mode()
def test_qwen_logits_are_bitwise_the_live_ones(qwen, tmp_path):
    wanted = qwen(**qwen_ids(), **qwen_media()).logits
    assert not torch.equal(qwen(**qwen_ids(), **qwen_media(seed=1)).logits, wanted)
    kept = make_cache(qwen, tmp_path).encoded("video", qwen_media)
    assert torch.equal(qwen(**qwen_ids(), **kept.inputs).logits, wanted)
    cache = make_cache(qwen, tmp_path, on_miss="raise")
    found = cache.encoded("video", lambda: pytest.fail("decoded"))
    assert torch.equal(qwen(**qwen_ids(), **found.inputs).logits, wanted)
    assert (kept.is_hit, found.is_hit, cache.statistics.hit_rate) == (False, True, 1.0)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(
        qwen.generate(**qwen_ids(), **found.inputs, **options), qwen.generate(**qwen_ids(), **qwen_media(), **options)
    )


@torch.inference_mode()
def test_other_weights_and_other_pixels_are_other_features(qwen, tmp_path):
    make_cache(qwen, tmp_path, preprocess={"fps": 2}).encoded("video", qwen_media)
    for options in ({"preprocess": {"fps": 1}}, {}):
        with pytest.raises(RecipeMismatch, match="fps"):
            make_cache(qwen, tmp_path, **options).encoded("video", qwen_media)
    tuned = small_models.qwen_with_head()
    next(tuned.model.visual.merger.parameters()).add_(1)
    with pytest.raises(RecipeMismatch, match="weights_sha256"):
        make_cache(tuned, tmp_path).encoded("video", qwen_media)
    # Another language model over the same encoder is no other recipe.
    other = small_models.qwen_with_head()
    next(other.model.language_model.parameters()).add_(1)
    assert make_cache(other, tmp_path, on_miss="raise", preprocess={"fps": 2}).encoded("video", qwen_media).is_hit


@pytest.mark.parametrize("asked", [{"preprocess": {"fps": 1}}, {"sampling": "fps:1"}])
def test_pixels_that_are_told_are_unlike_those_of_which_nothing_is_known(qwen, tmp_path, asked):
    make_cache(qwen, tmp_path).encoded("video", qwen_media)
    with pytest.raises(RecipeMismatch, match="fps"):
        make_cache(qwen, tmp_path, **asked).encoded("video", qwen_media)
    make_cache(qwen, tmp_path, on_stale="miss", **asked).encoded("video", lambda: qwen_media(seed=1))
    told, untold = (
        make_cache(qwen, tmp_path, on_miss="raise", **one).encoded("video", qwen_media) for one in (asked, {})
    )
    outputs = [one.inputs["mm_encoder_outputs"]["video"].pooler_output[0] for one in (told, untold)]
    assert not torch.equal(*outputs)
    make_cache(qwen, tmp_path / "told", **asked).encoded("video", qwen_media)
    with pytest.raises(RecipeMismatch, match="fps"):
        make_cache(qwen, tmp_path / "told").encoded("video", qwen_media)


def test_a_feature_without_the_grid_of_its_positions_is_refused(qwen, tmp_path):
    cache = make_cache(qwen, tmp_path)
    cache.encoded("video", qwen_media)
    store, key = cache.stored.store, cache.stored.key("video")
    value = {name: field for name, field in store.get(key).items() if name != "grid_thw"}
    store.put(key, value, recipe=cache.stored.identity.recipe(4))
    with pytest.raises(FeatureUnfit, match=r"video is stored without the grid .* video_grid_thw"):
        cache.encoded("video", qwen_media)


def test_features_come_to_where_the_model_is_when_it_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("consumers.evaluation.encoder_outputs.require_own_dtype", lambda device: None)  # knows no meta
    model = small_models.qwen_with_head()
    cache = make_cache(model, tmp_path)
    cache.encoded("video", qwen_media)
    store, key = cache.stored.store, cache.stored.key("video")
    store.put(key, store.get(key))  # without a recipe, for which weights that are nowhere would be digested
    model.to("meta")
    inputs = cache.encoded("video", qwen_media).inputs
    tokens = inputs["mm_encoder_outputs"]["video"].pooler_output[0]
    assert (tokens.device.type, inputs["video_grid_thw"].device.type) == ("meta", "meta")


def test_an_echo_finds_what_is_not_the_live_encoders(qwen, tmp_path):
    make_cache(qwen, tmp_path).encoded("video", qwen_media)
    assert make_cache(qwen, tmp_path, echo=1.0).encoded("video", qwen_media).is_hit
    with pytest.raises(EchoDifference, match=r"video: .* values differ"):
        make_cache(qwen, tmp_path, echo=1.0).encoded("video", lambda: qwen_media(seed=1))


def test_a_miss_can_be_an_error(qwen, tmp_path):
    cache = make_cache(qwen, tmp_path, on_miss="raise")
    with pytest.raises(FeatureMissing, match="another"):
        cache.encoded("another", qwen_media)
    assert (cache.statistics.hits, cache.statistics.misses) == (0, 1)


@pytest.mark.parametrize("option", ["on_miss", "on_stale", "on_difference"])
def test_a_mistyped_word_is_not_taken_for_another(qwen, tmp_path, option):
    with pytest.raises(ValueError, match=f"^{option} is 'rasie'; give "):
        make_cache(qwen, tmp_path, **{option: "rasie"})


def test_a_share_of_echoes_above_all_is_refused(qwen, tmp_path):
    with pytest.raises(ValueError, match=r"^echo is 10;"):
        make_cache(qwen, tmp_path, echo=10)


def test_several_media_at_once_are_refused(qwen, tmp_path):
    one = qwen_media()
    two = {name: torch.cat([value, value]) for name, value in one.items()}
    with pytest.raises(EvaluationError, match="2 media"):
        make_cache(qwen, tmp_path).encoded("video", lambda: two)


@torch.inference_mode()
def test_other_families_that_take_them_work_the_same_way(tmp_path):
    model, run = llava_onevision()
    pixels = pictures(FRAMES, side=SIDE)
    wanted = run(pixels).logits
    ids = torch.tensor([[1, 2, *[61] * (FRAMES + 1), 3]])
    for _ in range(2):
        encoded = make_cache(model, tmp_path).encoded("video", lambda: {"pixel_values_videos": pixels[None]})
        assert torch.equal(model(input_ids=ids, **encoded.inputs).logits, wanted)
    assert encoded.is_hit


def test_an_image_and_a_video_of_one_name_are_not_one_feature(qwen, tmp_path):
    make_cache(qwen, tmp_path).encoded("same", qwen_media)
    images = {"pixel_values": qwen_media()["pixel_values_videos"][:16], "image_grid_thw": torch.tensor([[1, 4, 4]])}
    with pytest.raises(RecipeMismatch, match="tap_point"):
        make_cache(qwen, tmp_path, modality="image").encoded("same", lambda: images)
    apart = {"modality": "image", "on_stale": "miss"}
    assert not make_cache(qwen, tmp_path, **apart).encoded("same", lambda: images).is_hit
    image = make_cache(qwen, tmp_path, modality="image", on_miss="raise").encoded("same", lambda: images)
    assert image.inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    video = make_cache(qwen, tmp_path, on_miss="raise").encoded("same", qwen_media)
    assert video.inputs["video_grid_thw"].tolist() == [[2, 4, 4]]


def test_autocast_is_refused(qwen, tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(EvaluationError, match="autocast"):
        make_cache(qwen, tmp_path).encoded("video", lambda: pytest.fail("decoded"))


def test_a_model_that_takes_none_is_refused(tmp_path):
    with pytest.raises(NoVisionTower, match="takes no mm_encoder_outputs"):
        make_cache(torch.nn.Linear(1, 1), tmp_path)
