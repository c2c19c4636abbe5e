"""A compiled tower is another recipe, and its features depend on nothing but the video."""

from __future__ import annotations

import shutil

import pytest
import torch

from pipeline.encoders import vision_tower
from pipeline.encoders.families import load_spec
from pipeline.errors import EncoderError

ONE_LAYER = {"select_layer": 1, "dtype": "float32"}  # each layer takes seconds to compile


def pixels(num_frames):
    return torch.randint(0, 256, (num_frames, 84, 84, 3), dtype=torch.uint8, generator=torch.manual_seed(num_frames))


@pytest.fixture
def settings_put_back():
    """What compiling sets in this process holds for one test only."""
    import torch._dynamo
    import torch._inductor.config

    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}
    with torch._dynamo.config.patch(limits), torch._inductor.config.patch(deterministic=False):
        yield
    torch._dynamo.reset()


def test_compiling_is_part_of_the_recipe_and_its_absence_is_not():
    eager, compiled = load_spec("longva", "small"), load_spec("longva", "small", is_compiled=True)
    assert "compile" not in eager.recipe()
    assert compiled.recipe() == {**eager.recipe(), "compile": "inductor"}
    assert load_spec("huggingface", "small", is_compiled=True).recipe()["compile"] == "inductor"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_features_do_not_depend_on_which_video_was_compiled_for_first(settings_put_back):
    spec = load_spec("longva", "small", is_compiled=True, **ONE_LAYER)
    found = []
    for order in ([1, 2], [2, 1]):
        encoder = spec.load("cpu")
        assert hasattr(encoder._tower, "_orig_mod"), "not compiled"
        found.append({count: encoder.encode(pixels(count).numpy()) for count in order})
        torch._dynamo.reset()
    eager = load_spec("longva", "small", **ONE_LAYER).load("cpu")
    for count, feature in found[0].items():
        assert torch.equal(feature, found[1][count])
        assert torch.allclose(feature, eager.encode(pixels(count).numpy()), atol=1e-5)


def test_a_machine_without_a_compiler_is_told_when_the_tower_is_loaded(monkeypatch, settings_put_back):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler\nmore lines")

    monkeypatch.setattr(vision_tower.torch, "compile", refuse)
    with pytest.raises(EncoderError, match="cannot compile for cpu: no C"):
        load_spec("longva", "small", is_compiled=True).load("cpu")
