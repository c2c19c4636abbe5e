"""Both halves of preprocessing together are bit-equal to the Hugging Face PIL processors called straight."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import image_processing_backends
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pipeline.errors import EncoderError
from pipeline.vision.preprocessing import ClipLikePreprocess, QwenImagePreprocess
from pipeline.vision.resizing import SmartResize

CLIP_LIKE = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 84},
        "crop_size": {"height": 84, "width": 84},
    },
    "clip_with_old_settings": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 84,
        "crop_size": 84,
        "resample": 3,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 56, "width": 70}, "resample": 3},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 96},
        "crop_size": {"height": 84, "width": 84},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "vit_bilinear": {
        "image_processor_type": "ViTImageProcessorFast",
        "size": {"height": 64, "width": 64},
        "resample": 2,
    },
    "crop_larger_than_resize": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 61, "width": 64},
    },
    "nearest_pixel": {"image_processor_type": "ViTImageProcessor", "size": {"height": 31, "width": 40}, "resample": 0},
    "no_resize": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "crop_size": {"height": 50, "width": 41},
    },
    "no_normalise": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_normalize": False,
    },
}
QWEN = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 4 * 784, "max_pixels": 40 * 784}

edges = st.integers(1, 130)
seeds = st.integers(0, 2**32 - 1)
light = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CLIP_LIKE)
@light
@given(height=edges, width=edges, seed=seeds)
@example(height=1, width=1, seed=0)
@example(height=3, width=200, seed=0)
@example(height=4, width=3, seed=0)
@example(height=1, width=60, seed=0)
@example(height=90, width=1, seed=0)
def test_frames_become_the_processors_pixel_values(name, height, width, seed):
    preprocess = ClipLikePreprocess.from_config(CLIP_LIKE[name])
    frame = noise(height, width, seed)
    small = preprocess(frame)
    assert small.shape == (preprocess.height, preprocess.width, 3)
    assert small.dtype == np.uint8
    values = preprocess.table()(torch.from_numpy(small)[None])
    straight = preprocess.built(images=[frame], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert values.dtype == straight.dtype == torch.float32
    assert torch.equal(values, straight)


@light
@given(height=edges, width=edges, seed=seeds)
@example(height=1, width=1, seed=0)
@example(height=3, width=4, seed=0)
@example(height=1, width=130, seed=0)
@example(height=700, width=900, seed=0)
def test_images_become_the_processors_patches(height, width, seed):
    preprocess = QwenImagePreprocess.from_config(QWEN)
    image = noise(height, width, seed)
    resized = preprocess(image)
    assert resized.dtype == np.uint8
    assert resized.shape[0] % 28 == resized.shape[1] % 28 == 0
    patches, grid = preprocess.patchify(preprocess.table()(torch.from_numpy(resized)[None])[0])
    straight = preprocess.built(images=[image], input_data_format="channels_last", return_tensors="pt")
    assert patches.shape[1] == 1176
    assert torch.equal(patches, straight["pixel_values"])
    assert torch.equal(grid, straight["image_grid_thw"])


def test_a_large_frame_is_no_exception():
    preprocess = ClipLikePreprocess.from_config(CLIP_LIKE["clip"])
    frame = noise(1080, 1920, 0)
    straight = preprocess.built(images=[frame], return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess.table()(torch.from_numpy(preprocess(frame))[None]), straight)


def test_bounds_replace_the_checkpoints():
    frame = noise(300, 300, 0)
    assert QwenImagePreprocess.from_config(QWEN)(frame).shape == (168, 168, 3)
    bounded = QwenImagePreprocess.from_config(QWEN, max_pixels=9 * 784)
    assert bounded(frame).shape == (84, 84, 3)
    assert bounded.recipe()["size"]["longest_edge"] == 9 * 784


def test_a_preprocess_travels_as_text_and_stays_equal():
    preprocess = ClipLikePreprocess.from_config(CLIP_LIKE["clip"])
    frame = noise(50, 60, 0)
    preprocess(frame)
    packed = pickle.dumps(preprocess)
    assert len(packed) < 1000
    assert pickle.loads(packed) == preprocess
    assert np.array_equal(pickle.loads(packed)(frame), preprocess(frame))


def test_the_recipe_writes_defaults_out():
    recipe = ClipLikePreprocess.from_config(CLIP_LIKE["clip"]).recipe()
    assert recipe["processor"] == "CLIPImageProcessorPil"
    assert recipe["size"] == {"shortest_edge": 84}
    assert recipe["resample"] == 3
    assert recipe["image_mean"] == [0.48145466, 0.4578275, 0.40821073]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "LlavaNextImageProcessor"}, "not supported"),
        ({}, "not supported"),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": None},
            "configuration does not work: .*must be specified",
        ),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "varying size"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"max_height": 9, "max_width": 9}}, "resizes to"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True, "pad_size": {"height": 9, "width": 9}}, "pads"),
    ],
)
def test_a_processor_with_other_steps_is_refused(config, message):
    with pytest.raises(EncoderError, match=message):
        ClipLikePreprocess.from_config(config)


def test_a_processor_that_resizes_to_other_bits_is_refused(monkeypatch):
    resize = image_processing_backends.np_resize
    monkeypatch.setattr(image_processing_backends, "np_resize", lambda *args, **rest: resize(*args, **rest) ^ 1)
    with pytest.raises(EncoderError, match="transformers resizes a frame of 64x97 pixels to other values"):
        ClipLikePreprocess.from_config(CLIP_LIKE["clip"])
    with pytest.raises(EncoderError, match="this version of it is not supported"):
        QwenImagePreprocess.from_config(QWEN)


@settings(deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    min_pixels=st.integers(1, 10**6),
    range_=st.floats(1, 100),
    factor=st.sampled_from((14, 28, 32)),
)
def test_images_get_the_size_that_the_processor_gives_them(height, width, min_pixels, range_, factor):
    max_pixels = int(min_pixels * range_)
    asked = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    resize = SmartResize(3, **asked)
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match="over 200 times the other"):
            resize(np.zeros((height, width, 3), dtype=np.uint8))
    else:
        assert resize.resized_to(height, width) == smart_resize(height, width, **asked)


def test_another_processor_is_no_qwen_processor():
    with pytest.raises(EncoderError, match="not Qwen2-VL's"):
        QwenImagePreprocess.from_config(CLIP_LIKE["clip"])
    for broken in ({"do_resize": False}, {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 784}}):
        with pytest.raises(EncoderError, match="has to resize"):
            QwenImagePreprocess.from_config(QWEN | broken)
    with pytest.raises(EncoderError, match="cannot both hold"):
        QwenImagePreprocess.from_config(QWEN, min_pixels=100 * 784)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 4), (0, 5, 3)])
def test_what_is_no_frame_is_refused(shape):
    with pytest.raises(ValueError, match="expected a frame"):
        ClipLikePreprocess.from_config(CLIP_LIKE["clip"])(np.zeros(shape, dtype=np.uint8))
