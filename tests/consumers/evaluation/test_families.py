"""Every family of transformers that is named gives bitwise the same logits from the cache as live."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from cache_store import FeatureStore, RecipeMismatch, VideoKey, video_value
from consumers.evaluation import CachedVisionTower, NoVisionTower
from pipeline.encoders import small_models
from pipeline.encoders.huggingface import huggingface_spec
from pipeline.recipe import video_recipe
from tests.consumers.evaluation.conftest import pictures

SIDE, PATCH, FRAMES = 28, 14, 6  # 2 x 2 patches
IMAGE, VIDEO = 60, 61
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def clip():
    return CLIPVisionConfig(**VISION, projection_dim=8)


def siglip():
    return SiglipVisionConfig(**VISION, vision_use_head=False)


def made(model_class, config_class, vision, **options):
    config = config_class(vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_index=IMAGE, **options)
    config.image_token_id = IMAGE
    with torch.random.fork_rng(devices=[]):
        model = model_class(config).eval().requires_grad_(False)
    small_models.fill_from_seed(model, seed=4, dtype=torch.float32)
    return model


def ids(token, count):
    return torch.tensor([[1, 2, *[token] * count, 3]])


def llava(strategy="default", layer=-2):
    options = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    model = made(LlavaForConditionalGeneration, LlavaConfig, clip(), **options)
    tokens = 4 + (strategy == "full")
    return model, lambda pixels: model(input_ids=ids(IMAGE, FRAMES * tokens), pixel_values=pixels)


def llava_next():
    # One tile beside the base image: two rows for each picture.
    model = made(LlavaNextForConditionalGeneration, LlavaNextConfig, clip(), image_grid_pinpoints=[[SIDE, SIDE]])
    sizes = torch.tensor([[SIDE, SIDE]] * 3)
    # 4 of the base, 2 x 2 of the tile and a newline for each of its rows.
    return model, lambda pixels: model(
        input_ids=ids(IMAGE, 3 * (4 + 4 + 2)), pixel_values=pixels.unflatten(0, (3, 2)), image_sizes=sizes
    )


def llava_next_video():
    options = {"video_token_index": VIDEO, "video_token_id": VIDEO, "spatial_pool_stride": 2}
    model = made(LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig, clip(), **options)
    return model, lambda pixels: model(input_ids=ids(VIDEO, FRAMES), pixel_values_videos=pixels[None])


def llava_onevision(vision=siglip, layer=-1, strategy="full"):
    options = {"video_token_index": VIDEO, "video_token_id": VIDEO}
    options |= {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    model = made(LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig, vision(), **options)
    return model, lambda pixels: model(input_ids=ids(VIDEO, FRAMES + 1), pixel_values_videos=pixels[None])


FAMILIES = {
    "llava": llava,
    "llava, class token kept": lambda: llava("full", -1),
    "llava-next": llava_next,
    "llava-next-video": llava_next_video,
    "llava-onevision": llava_onevision,
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_cached_logits_are_bitwise_the_live_ones(name, tmp_path, monkeypatch):
    model, run = FAMILIES[name]()
    pixels = pictures(FRAMES, side=SIDE)
    wanted = run(pixels).logits
    assert not torch.equal(run(pictures(FRAMES, side=SIDE, seed=9)).logits, wanted)

    def cache(**options):
        return CachedVisionTower(
            model, tmp_path / "store", dataset="set", nframe=FRAMES, model_signature="x" * 8, **options
        )

    with cache(on_miss="keep").request("video") as request:
        assert torch.equal(run(request.pixels(lambda: pixels)).logits, wanted)
    reading = cache(on_miss="raise")
    monkeypatch.setattr(
        type(model.model.vision_tower), "forward", lambda *a, **k: pytest.fail("the live tower was called")
    )
    with reading.request("video") as request:
        found = run(request.pixels(lambda: pytest.fail("decoded"))).logits
    assert torch.equal(found, wanted)
    assert (reading.statistics.hits, reading.statistics.misses) == (1, 0)
    monkeypatch.undo()
    echo = cache(echo=1.0)
    with echo.request("video") as request:
        assert torch.equal(run(request.pixels(lambda: pixels)).logits, wanted)
    assert (echo.statistics.echoes, echo.statistics.echo_differences) == (1, 0)


@torch.inference_mode()
def test_generation_is_the_same_too(tmp_path):
    model, _ = llava()
    pixels, prompt = pictures(FRAMES, side=SIDE), ids(IMAGE, FRAMES * 4)
    options = {"max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(input_ids=prompt, pixel_values=pixels, **options)
    for _ in range(2):
        cache = CachedVisionTower(
            model, tmp_path / "s", dataset="set", nframe=FRAMES, model_signature="x" * 8, on_miss="keep"
        )
        with cache.request("video") as request:
            found = model.generate(input_ids=prompt, pixel_values=request.pixels(lambda: pixels), **options)
        assert torch.equal(found, wanted)
    assert cache.statistics.hits == 1


def test_features_that_join_several_layers_are_refused(tmp_path):
    model, _ = llava(layer=[-1, -2])
    with pytest.raises(NoVisionTower, match="joins the layers"):
        CachedVisionTower(model, tmp_path, dataset="set", model_signature="x" * 8)


def built(tower, folder, root):
    """Fill a store from a tower's checkpoint as `--encoder huggingface` does; return its signature and the pixels."""
    tower.save_pretrained(folder)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = huggingface_spec(str(folder), dtype="float32")
    frames = torch.randint(
        0, 255, (FRAMES, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    key = VideoKey("set", "video", FRAMES, spec.model_signature)
    with FeatureStore(root) as store:
        value = video_value(key, spec.load("cpu").encode(frames.numpy()), video_path="video.mp4")
        store.put(key, value, recipe=video_recipe(spec, nframe=FRAMES, sampling="source"))
    return spec.model_signature, spec.preprocess.table()(frames)


class LastState(torch.nn.Module):
    """A model of LLaVA's code, whose tower reads the last hidden state and names no layer."""

    def __init__(self, inner):
        super().__init__()
        self.vision_tower, self.config = inner, None

    def get_vision_tower(self):
        return self

    def forward(self, images):
        return self.vision_tower(images, output_hidden_states=True).hidden_states[-1]


def test_a_last_hidden_state_behind_a_norm_is_none_of_the_hidden_states(tmp_path):
    model, _ = llava_onevision()
    folder = tmp_path / "model"
    signature, _ = built(model.model.vision_tower, folder, tmp_path / "store")
    own = LastState(SiglipVisionModel.from_pretrained(folder).eval())
    for one, checkpoint in ((model, None), (model, folder), (own, None)):
        cache = CachedVisionTower(
            one, tmp_path / "store", dataset="set", nframe=FRAMES, model_signature=signature, checkpoint=checkpoint
        )
        with (
            pytest.raises(RecipeMismatch, match=r"encoder\.layer: found the last hidden state"),
            cache.request("video"),
        ):
            pass


@pytest.mark.parametrize("lacking", [None, "post_layernorm", "a layer"])
@torch.inference_mode()
def test_a_tower_that_lacks_what_its_features_depend_on_is_not_its_checkpoints(tmp_path, lacking):
    model, _ = llava()
    folder = tmp_path / "model"
    signature, pixels = built(model.model.vision_tower, folder, tmp_path / "store")
    tower = LastState(CLIPVisionModel.from_pretrained(folder).eval())
    inner = getattr(tower.vision_tower, "vision_model", tower.vision_tower)
    if lacking == "a layer":
        del inner.encoder.layers[-1:]
    elif lacking == "post_layernorm":
        inner.post_layernorm = torch.nn.Identity()
    live = tower(pixels)
    cache = CachedVisionTower(
        tower, tmp_path / "store", dataset="set", nframe=FRAMES, model_signature=signature, checkpoint=folder
    )
    if lacking == "a layer":
        with pytest.raises(RecipeMismatch, match="weights_sha256"), cache.request("video"):
            pass
        return
    with cache.request("video") as request:
        assert torch.equal(tower(request.pixels(lambda: pytest.fail("decoded"))), live)
