"""Models and options that cannot work: quick errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.encoders import StepInput, load_spec
from pipeline.errors import EncoderError
from tests.pipeline.encoders import checkpoints


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(EncoderError, match="'llava'; known: longva, qwen2_5_vl, huggingface"):
        load_spec("llava", "small")


@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("longva", "max_pixels"),
        ("longva", "min_pixels"),
        ("huggingface", "select_layer"),
        ("huggingface", "max_pixels"),
        ("qwen2_5_vl", "select_layer"),
        ("qwen2_5_vl", "frames_per_forward"),
        ("qwen2_5_vl", "is_compiled"),
    ],
)
def test_an_option_that_a_family_does_not_have_is_refused(family, option):
    with pytest.raises(EncoderError, match=f"{family} has no option {option}"):
        load_spec(family, "small", **{option: 1})


@pytest.mark.parametrize("family", ["longva", "huggingface", "qwen2_5_vl"])
def test_a_dtype_that_no_tower_runs_in_is_refused(family):
    with pytest.raises(EncoderError, match="choose from float16, bfloat16, float32"):
        load_spec(family, "small", dtype="int8")


def test_no_frames_per_forward_are_refused():
    with pytest.raises(EncoderError, match="at least 1"):
        load_spec("longva", "small", frames_per_forward=0)


@pytest.mark.parametrize("family", ["longva", "huggingface", "qwen2_5_vl"])
class TestFolders:
    def test_a_missing_folder_is_named(self, family, tmp_path):
        with pytest.raises(EncoderError, match=r"no checkpoint folder .*gone"):
            load_spec(family, str(tmp_path / "gone"))

    def test_a_file_is_no_folder(self, family, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(EncoderError, match="name the checkpoint's folder"):
            load_spec(family, str(tmp_path / "model.safetensors"))

    def test_a_folder_without_configuration_is_no_checkpoint(self, family, tmp_path):
        with pytest.raises(EncoderError, match=r"has no config\.json"):
            load_spec(family, str(tmp_path))

    def test_a_configuration_that_is_no_json_is_named(self, family, tmp_path):
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(EncoderError, match=r"config\.json cannot be read"):
            load_spec(family, str(tmp_path))

    def test_a_hub_id_out_of_reach_is_an_error_without_a_try_that_says_what_to_do(self, family, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = []
        monkeypatch.setattr("socket.getaddrinfo", lambda *args, **named: asked.append(args))
        with pytest.raises(EncoderError, match=r"is no folder here.*pass a folder"):
            load_spec(family, "nobody/no-such-model")
        assert not asked


@pytest.mark.parametrize(
    ("family", "save"),
    [
        ("longva", checkpoints.save_clip_vision),
        ("huggingface", checkpoints.save_dinov2),
        ("qwen2_5_vl", checkpoints.save_qwen),
    ],
)
class TestWeights:
    def test_a_folder_without_weights_is_an_error(self, family, save, tmp_path):
        folder = save(tmp_path / "model")
        (folder / "model.safetensors").unlink()
        with pytest.raises(EncoderError, match="has no weights"):
            load_spec(family, str(folder))

    def test_damaged_weights_are_an_error(self, family, save, tmp_path):
        folder = save(tmp_path / "model")
        (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
        with pytest.raises(EncoderError, match=r"model\.safetensors cannot be read"):
            load_spec(family, str(folder))

    def test_weights_that_are_cut_short_are_an_error(self, family, save, tmp_path):
        folder = save(tmp_path / "model")
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
        with pytest.raises(EncoderError, match=r"model\.safetensors cannot be read"):
            load_spec(family, str(folder))

    def test_a_missing_tensor_is_never_filled_with_random_numbers(self, family, save, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = save(tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        lost = next(name for name in sorted(tensors) if ".1." in name and "norm" in name)
        del tensors[lost]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderError, match="lacks 1 tensors of the model"):
            load_spec(family, str(folder)).load("cpu")


def test_a_language_model_is_no_vision_encoder(tmp_path):
    folder = checkpoints.save_dinov2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}))
    with pytest.raises(EncoderError, match="no vision part"):
        load_spec("huggingface", str(folder))


def test_an_unknown_architecture_is_no_vision_encoder(tmp_path):
    folder = checkpoints.save_dinov2(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "of_nobody"}))
    with pytest.raises(EncoderError, match="does not work as a vision encoder"):
        load_spec("huggingface", str(folder))


def test_another_architecture_is_no_qwen(tmp_path):
    with pytest.raises(EncoderError, match="its model_type is 'dinov2'"):
        load_spec("qwen2_5_vl", str(checkpoints.save_dinov2(tmp_path / "model")))


def test_dinov2_is_no_longva_tower(tmp_path):
    with pytest.raises(EncoderError, match="neither a LongVA checkpoint"):
        load_spec("longva", str(checkpoints.save_dinov2(tmp_path / "model")))


def test_a_processor_that_does_not_fit_the_tower_is_refused(tmp_path):
    folder = checkpoints.save_clip_vision(tmp_path / "model")
    config = checkpoints.CLIP_PROCESSOR | {"crop_size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="makes 24x24 images, the tower takes 28x28"):
        load_spec("longva", str(folder))


def test_a_step_without_images_or_with_a_placeholder_in_its_text_is_refused():
    encoder = load_spec("qwen2_5_vl", "small").load("cpu")
    image = np.zeros((56, 56, 3), dtype=np.uint8)
    with pytest.raises(EncoderError, match="at least one image"):
        encoder.encode(StepInput((), "insert"))
    with pytest.raises(EncoderError, match="2 image placeholders for 1 images"):
        encoder.encode(StepInput((image,), "insert <|image_pad|>"))


def test_the_chat_template_file_goes_before_the_tokenizers(tmp_path):
    folder = checkpoints.save_qwen(tmp_path / "model")
    before = load_spec("qwen2_5_vl", str(folder))
    template = before.chat_template.replace("<|im_end|>", "!<|im_end|>")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    after = load_spec("qwen2_5_vl", str(folder))
    assert after.chat_template == template
    assert after.recipe()["prompt"] != before.recipe()["prompt"]
