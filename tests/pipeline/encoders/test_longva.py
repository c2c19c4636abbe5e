"""LongVA checkpoint folders in their real layout, and what may be wrong with them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.encoders import load_spec
from pipeline.errors import EncoderError
from tests.pipeline.encoders import checkpoints

GARBAGE = b"\xff" * 4096


@pytest.fixture
def tower(tmp_path):
    return checkpoints.save_clip_vision(tmp_path / "towers" / "clip", dtype=torch.float16)


@pytest.fixture
def longva(tmp_path, tower):
    return checkpoints.save_longva(
        tmp_path / "LongVA",
        tower=tower,
        mm_vision_tower="../towers/clip",
        shard_of_the_language_model=GARBAGE,
    )


def frames(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)


def test_only_the_towers_tensors_are_read(longva, tower):
    spec = load_spec("longva", str(longva))
    same = load_spec("longva", str(tower))
    assert spec.recipe() == same.recipe()
    assert torch.equal(spec.load("cpu").encode(frames()), same.load("cpu").encode(frames()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("at_most", [1, 3, 16, 100])
def test_on_the_cpu_a_video_in_parts_has_the_bits_of_one_forward(dtype, at_most):
    spec = load_spec("longva", "small", dtype=dtype)
    encoder, size = spec.load("cpu"), spec.preprocess.height
    pixels = np.random.default_rng(1).integers(0, 256, (17, size, size, 3), dtype=np.uint8)
    assert torch.equal(encoder.forward(torch.tensor(pixels), at_most=at_most), encoder.encode(pixels))


def test_the_signature_is_that_of_the_first_cache_scripts(longva, tower):
    expected = hashlib.md5(b"../towers/clip:layer-2").hexdigest()[:8]
    assert load_spec("longva", str(longva)).model_signature == expected
    assert load_spec("longva", f"{tower}/").model_signature == hashlib.md5(b"clip:layer-2").hexdigest()[:8]
    assert load_spec("longva", "small").model_signature == hashlib.md5(b"small:layer-2").hexdigest()[:8]


def test_the_tower_of_openai_is_built_in(tmp_path, tower):
    folder = checkpoints.save_longva(
        tmp_path / "LongVA",
        tower=tower,
        mm_vision_tower="openai/clip-vit-large-patch14-336",
        shard_of_the_language_model=GARBAGE,
    )
    spec = load_spec("longva", str(folder))
    assert spec.model_signature == hashlib.md5(b"openai/clip-vit-large-patch14-336:layer-2").hexdigest()[:8]
    assert spec.feature_bytes(128) == 150_994_944
    assert (spec.preprocess.height, spec.preprocess.width) == (336, 336)
    assert spec.dtype == "float16"
    assert spec.recipe()["architecture"]["hidden_act"] == "quick_gelu"


def test_the_layer_and_the_class_token_follow_the_checkpoint(longva):
    config = json.loads((longva / "config.json").read_text())
    config |= {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
    (longva / "config.json").write_text(json.dumps(config))
    spec = load_spec("longva", str(longva))
    assert spec.select_layer == -1
    feature = spec.load("cpu").encode(frames())
    assert feature.shape == (2, 5, 16)
    assert feature.nbytes == spec.feature_bytes(2)
    assert feature.shape == spec.feature_shape(2)


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_every_hidden_state_can_be_stored(tower, layer):
    from transformers import CLIPVisionModel

    spec = load_spec("longva", str(tower), select_layer=layer, dtype="float32")
    pixels = spec.preprocess.table()(torch.from_numpy(frames()))
    model = CLIPVisionModel.from_pretrained(tower, dtype=torch.float32, attn_implementation="sdpa")
    with torch.inference_mode():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert torch.equal(spec.load("cpu").encode(frames()), states[layer][:, 1:])


def test_a_layer_that_does_not_exist_is_refused(tower):
    for layer in (-5, 4):
        with pytest.raises(EncoderError, match="hidden states -4 to 3"):
            load_spec("longva", str(tower), select_layer=layer)


def test_a_prefix_of_older_transformers_digests_equally(tower):
    before = load_spec("longva", str(tower)).recipe()
    tensors = {f"vision_model.{name}": value for name, value in checkpoints.clip_tensors(tower).items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, tower / "model.safetensors", metadata={"format": "pt"})
    assert load_spec("longva", str(tower)).recipe() == before
    assert load_spec("longva", str(tower)).load("cpu").encode(frames()).shape == (2, 4, 16)


def test_a_bin_checkpoint_is_read_the_same(tower):
    before = load_spec("longva", str(tower))
    recipe, feature = before.recipe(), before.load("cpu").encode(frames())
    torch.save(load_file(tower / "model.safetensors"), tower / "pytorch_model.bin")
    (tower / "model.safetensors").unlink()
    after = load_spec("longva", str(tower))
    assert after.recipe() == recipe
    assert torch.equal(after.load("cpu").encode(frames()), feature)


def test_a_bin_checkpoint_that_runs_code_is_refused(tower):
    class Payload:
        def __reduce__(self):
            return (print, ("code of a stranger",))

    (tower / "model.safetensors").unlink()
    torch.save({"embeddings.class_embedding": Payload()}, tower / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"pytorch_model.bin cannot be read"):
        load_spec("longva", str(tower))


def test_a_checkpoint_without_a_tower_is_an_error_that_tells_what_was_looked_for(longva):
    index = longva / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(EncoderError, match=r"no tensor is named model.vision_tower.vision_tower.vision_model"):
        load_spec("longva", str(longva))


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_tensors_that_do_not_fit_are_an_error_and_never_random(tower, change):
    tensors = load_file(tower / "model.safetensors")
    name = "encoder.layers.1.mlp.fc1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "reshaped":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        tensors["encoder.layers.1.adapter.weight"] = torch.zeros(3)
    save_file(tensors, tower / "model.safetensors", metadata={"format": "pt"})
    named = "adapter" if change == "unexpected" else "fc1"
    with pytest.raises(EncoderError, match=named):
        load_spec("longva", str(tower)).load("cpu")


def test_a_tower_that_is_nowhere_is_an_error_that_tells_where_it_was_looked_for(tmp_path, tower):
    folder = checkpoints.save_longva(
        tmp_path / "LongVA", tower=tower, mm_vision_tower="gone/tower", shard_of_the_language_model=GARBAGE
    )
    with pytest.raises(EncoderError, match=r"gone/tower.*were looked for in"):
        load_spec("longva", str(folder))


def test_a_damaged_shard_is_an_error_that_names_it(longva):
    (longva / "model-00001-of-00002.safetensors").write_bytes(GARBAGE)
    with pytest.raises(EncoderError, match=r"model-00001-of-00002.safetensors cannot be read"):
        load_spec("longva", str(longva)).recipe()
    (longva / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"model-00001-of-00002.safetensors cannot be read"):
        load_spec("longva", str(longva)).load("cpu")
