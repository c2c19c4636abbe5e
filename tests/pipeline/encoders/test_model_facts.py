"""What a checkpoint's configuration and tokenizer do is part of the recipe, and what is loaded has to do the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen2_5_VLConfig

from pipeline.encoders import load_spec
from pipeline.errors import EncoderError
from tests.pipeline.encoders import checkpoints


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def another_rope_theta(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"]["rope_parameters"].update(rope_theta=500000.0))


def another_window(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["vision_config"].update(window_size=112))


def other_sliding_layers(folder: Path) -> None:
    edit(
        folder / "config.json",
        lambda config: config["text_config"].update(
            use_sliding_window=True, sliding_window=4, layer_types=["full_attention", "sliding_attention"]
        ),
    )


def two_ids_exchanged(folder: Path) -> None:
    def exchange(content: dict) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    edit(folder / "tokenizer.json", exchange)


def one_merge_more(folder: Path) -> None:
    def add(content: dict) -> None:
        content["model"]["vocab"]["in"] = 262
        content["model"]["merges"].append(["i", "n"])

    edit(folder / "tokenizer.json", add)


CHANGES = [another_rope_theta, another_window, other_sliding_layers, two_ids_exchanged, one_merge_more]


@pytest.fixture
def folder(tmp_path) -> Path:
    return checkpoints.save_qwen(tmp_path / "qwen")


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_qwen_model_or_its_tokenizer_changes_the_recipe(folder, change):
    before = load_spec("qwen2_5_vl", str(folder)).recipe()
    change(folder)
    after = load_spec("qwen2_5_vl", str(folder)).recipe()
    assert after != before
    assert after["weights_sha256"] == before["weights_sha256"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_qwen_model_that_changed_after_the_recipe_is_not_loaded(folder, change):
    spec = load_spec("qwen2_5_vl", str(folder))
    change(folder)
    what = "tokenizer" if change in (two_ids_exchanged, one_merge_more) else "configuration"
    with pytest.raises(EncoderError, match=f"the {what} in .* has changed since it was read for the recipe"):
        spec.load("cpu")


def test_a_tower_whose_configuration_changed_after_the_recipe_is_not_loaded(tmp_path):
    folder = checkpoints.save_dinov2(tmp_path / "dinov2")
    spec = load_spec("huggingface", str(folder))
    edit(folder / "config.json", lambda config: config.update(layer_norm_eps=1e-3))
    with pytest.raises(EncoderError, match=r"the configuration in .* has changed since it was read for the recipe"):
        spec.load("cpu")


def test_a_copy_saved_again_has_the_same_recipe(folder):
    recipe = load_spec("qwen2_5_vl", str(folder)).recipe()
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    Qwen2_5_VLConfig.from_pretrained(folder).save_pretrained(folder)
    assert load_spec("qwen2_5_vl", str(folder)).recipe() == recipe


def test_a_configuration_written_by_an_older_transformers_has_the_same_recipe(folder):
    recipe = load_spec("qwen2_5_vl", str(folder)).recipe()

    def flatten(config: dict) -> None:
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        config.update({key: value for key, value in text.items() if key not in ("model_type", "layer_types")})
        config.update(rope_theta=rope["rope_theta"], torch_dtype="float32", transformers_version="4.49.0")
        config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        config["vision_config"] = {**config["vision_config"], "in_chans": 3}
        del config["vision_config"]["rope_parameters"]

    edit(folder / "config.json", flatten)
    assert load_spec("qwen2_5_vl", str(folder)).recipe() == recipe
