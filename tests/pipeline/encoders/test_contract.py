"""What every encoder family promises, against a straight forward of transformers written here."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Model,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipModel,
)

from pipeline.encoders import StepInput, load_spec
from pipeline.errors import EncoderError
from tests.pipeline.encoders import checkpoints

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Family:
    """One way to get an encoder, and what transformers alone would answer."""

    family: str
    save: Callable[[Path], Path]
    straight: Callable[[Path, list[np.ndarray], torch.dtype], torch.Tensor]


def clip_second_to_last(folder, frames, dtype):
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values"]
    model = CLIPVisionModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    return model(pixel_values=pixels.to(dtype), output_hidden_states=True).hidden_states[-2][:, 1:]


def full_clip_second_to_last(folder, frames, dtype):
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values"]
    model = CLIPModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval().vision_model
    return model(pixel_values=pixels.to(dtype), output_hidden_states=True).hidden_states[-2][:, 1:]


def dinov2_last(folder, frames, dtype):
    pixels = BitImageProcessorPil.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values"]
    model = Dinov2Model.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    return model(pixel_values=pixels.to(dtype)).last_hidden_state


def siglip_last(folder, frames, dtype):
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values"]
    model = SiglipModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval().vision_model
    return model(pixel_values=pixels.to(dtype)).last_hidden_state


def qwen_pooled(folder, images, dtype):
    inputs = Qwen2VLImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    text = "<|im_start|>user\n"
    for grid in inputs["image_grid_thw"]:
        text += "<|vision_start|>" + "<|image_pad|>" * (int(grid.prod()) // 4) + "<|vision_end|>"
    text += "insert the needle é<|im_end|>\n"
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    types = (tokens["input_ids"] == model.config.image_token_id).int()
    hidden = model(**tokens, **inputs, mm_token_type_ids=types, output_hidden_states=True).hidden_states[-1]
    return hidden.mean(dim=1, keepdim=True).to(torch.float16)


FAMILIES = {
    "longva": Family("longva", checkpoints.save_clip_vision, clip_second_to_last),
    "longva_full_clip": Family("longva", checkpoints.save_full_clip, full_clip_second_to_last),
    "huggingface_dinov2": Family("huggingface", checkpoints.save_dinov2, dinov2_last),
    "huggingface_siglip": Family("huggingface", checkpoints.save_siglip, siglip_last),
    "qwen2_5_vl": Family("qwen2_5_vl", checkpoints.save_qwen, qwen_pooled),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def folder(family, tmp_path) -> Path:
    return family.save(tmp_path / "checkpoint")


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (40 + 9 * i, 60, 3), dtype=np.uint8) for i in range(3)]


def encode(spec, images=None) -> torch.Tensor:
    """Do what the pipeline does: preprocess on the CPU, then encode."""
    resized = [spec.preprocess(image) for image in images or pictures()]
    for image in resized:
        image.flags.writeable = False  # as Ray hands them out
    encoder = spec.load("cpu")
    if spec.family == "qwen2_5_vl":
        return encoder.encode(StepInput(tuple(resized), "insert the needle é"))
    return encoder.encode(np.stack(resized))


def payload_bytes(spec, images: int) -> int:
    return spec.feature_bytes() if spec.family == "qwen2_5_vl" else spec.feature_bytes(images)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_feature_is_bitwise_what_transformers_alone_computes(family, folder, dtype):
    feature = encode(load_spec(family.family, str(folder), dtype=dtype))
    with torch.inference_mode():
        straight = family.straight(folder, pictures(), DTYPES[dtype])
    assert feature.dtype == straight.dtype
    assert feature.shape == straight.shape
    assert torch.equal(feature, straight)
    assert feature.float().std() > 0


def test_the_feature_is_a_plain_cpu_tensor_of_its_own(family, folder):
    spec = load_spec(family.family, str(folder))
    feature = encode(spec)
    assert feature.device.type == "cpu"
    assert feature.is_contiguous()
    assert not feature.is_inference()
    assert not feature.requires_grad
    assert feature.untyped_storage().nbytes() == feature.nbytes == payload_bytes(spec, 3)
    assert spec.family == "qwen2_5_vl" or spec.feature_shape(3) == feature.shape


def test_encoding_again_and_from_a_pickled_spec_gives_the_same_bits(family, folder):
    spec = load_spec(family.family, str(folder))
    feature = encode(spec)
    copy = pickle.loads(pickle.dumps(spec))
    assert torch.equal(encode(copy), feature)
    assert torch.equal(encode(spec), feature)


def test_a_spec_holds_no_weights(family, folder):
    spec = load_spec(family.family, str(folder))
    spec.recipe()
    assert len(pickle.dumps(spec)) < 5000


def test_the_recipe_is_json_and_stays_the_same(family, folder):
    recipe = load_spec(family.family, str(folder)).recipe()
    assert json.loads(json.dumps(recipe)) == recipe
    again = pickle.loads(pickle.dumps(load_spec(family.family, str(folder))))
    assert again.recipe() == recipe


def test_the_recipe_knows_no_path(family, folder, tmp_path):
    recipe = load_spec(family.family, str(folder)).recipe()
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_spec(family.family, str(moved)).recipe() == recipe


def test_a_changed_weight_changes_the_recipe(family, folder):
    before = load_spec(family.family, str(folder)).recipe()
    checkpoints.change_one_weight(folder)
    after = load_spec(family.family, str(folder)).recipe()
    assert before["weights_sha256"] != after["weights_sha256"]
    assert {**before, "weights_sha256": ""} == {**after, "weights_sha256": ""}


def test_the_recipe_tells_dtypes_apart(family, folder):
    recipes = [load_spec(family.family, str(folder), dtype=dtype).recipe() for dtype in DTYPES]
    assert [recipe["dtype"] for recipe in recipes] == list(DTYPES)
    assert recipes[0]["weights_sha256"] == recipes[1]["weights_sha256"]


@pytest.mark.parametrize("name", ["longva", "huggingface", "qwen2_5_vl"])
def test_the_small_model_is_the_same_in_every_process(name):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    spec = load_spec(name, "small")
    feature = encode(spec)
    digest = spec.recipe()["weights_sha256"]
    assert torch.equal(torch.random.get_rng_state(), before), "the global random generator was disturbed"
    torch.manual_seed(8)
    other = load_spec(name, "small")
    assert torch.equal(encode(other), feature)
    assert other.recipe()["weights_sha256"] == digest
    assert feature.nbytes == payload_bytes(spec, 3)
    assert feature.float().std() > 0.1


@pytest.mark.parametrize("name", ["longva", "huggingface", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_small_model_runs_in_every_dtype(name, dtype):
    feature = encode(load_spec(name, "small", dtype=dtype))
    assert feature.isfinite().all()
    assert feature.dtype == (torch.float16 if name == "qwen2_5_vl" else DTYPES[dtype])


@pytest.mark.parametrize("name", ["longva", "huggingface"])
def test_fewer_frames_per_forward_are_part_of_the_recipe_and_close(name):
    whole, split = load_spec(name, "small"), load_spec(name, "small", frames_per_forward=2)
    assert split.recipe() == {**whole.recipe(), "frames_per_forward": 2}
    torch.testing.assert_close(encode(split).float(), encode(whole).float(), atol=2e-2, rtol=2e-2)


def test_loading_prints_nothing_and_importing_is_cheap():
    script = (
        "import sys, pipeline.encoders; assert 'transformers' not in sys.modules; "
        "spec = pipeline.encoders.load_spec('qwen2_5_vl', 'small'); spec.recipe(); spec.load('cpu')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_weights_that_changed_after_the_recipe_was_made_are_not_loaded(family, folder, tmp_path):
    spec = load_spec(family.family, str(folder))
    spec.recipe()
    sent = pickle.dumps(spec)
    checkpoints.change_one_weight(folder)
    with pytest.raises(EncoderError, match="have changed since"):
        pickle.loads(sent).load("cpu")


def test_a_copy_of_the_weights_under_the_same_path_is_loaded(family, folder, tmp_path):
    spec = load_spec(family.family, str(folder))
    spec.recipe()
    sent = pickle.dumps(spec)
    shutil.copytree(folder, tmp_path / "copy")  # other inodes and times, as on another node
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    pickle.loads(sent).load("cpu")


def test_weights_that_change_while_they_are_loaded_are_refused(family, folder, monkeypatch):
    spec = load_spec(family.family, str(folder))
    name = "_load_model" if spec.family == "qwen2_5_vl" else "_load_tower"
    target = sys.modules[type(spec).__module__] if hasattr(sys.modules[type(spec).__module__], name) else type(spec)
    name = name if target is not type(spec) else "_tensors"
    read = getattr(target, name)

    def changing(*args):
        checkpoints.change_one_weight(folder)
        return read(*args)

    monkeypatch.setattr(target, name, changing)
    with pytest.raises(EncoderError, match="have changed since"):
        spec.load("cpu")
