"""Steps that share Qwen2.5-VL's forward: how far their features are from those of a forward each.

What `docs/decisions/0018-steps-that-share-a-forward.md` says of the small model's bits is what these tests assert.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.encoders import StepInput, load_spec
from pipeline.encoders.base import StepOnDevice
from pipeline.errors import EncoderError

# Of values up to 2.5: two steps of bfloat16 there, and less than two of float16.
MOST_APART = {"float32": 2**-10, "float16": 2**-9, "bfloat16": 2**-6}


def spec_of(dtype: str, micro_batch: int | None = None):
    return load_spec("qwen2_5_vl", "small", dtype=dtype, micro_batch=micro_batch)


def steps(spec, *, ragged: bool) -> list[StepOnDevice]:
    """Four steps of different pictures; ragged ones have other sizes, numbers of views and instructions too."""
    generator = np.random.default_rng(5)

    def picture(number: int) -> torch.Tensor:
        shape = (84 + 28 * number, 112, 3) if ragged else (112, 112, 3)
        return torch.tensor(spec.preprocess(generator.integers(0, 256, shape, dtype=np.uint8)))

    return [
        StepOnDevice(
            [picture(number) for _ in range(1 + number % 3 if ragged else 2)],
            "pick the block " * (1 + number if ragged else 2),
        )
        for number in range(4)
    ]


def alone(encoder, step: StepOnDevice) -> torch.Tensor:
    return encoder.encode(StepInput(tuple(image.numpy() for image in step.images), step.instruction))


@pytest.mark.parametrize(
    ("dtype", "ragged"), [("float32", True), ("float16", True), ("bfloat16", True), ("bfloat16", False)]
)
def test_a_shared_forward_gives_what_a_forward_each_gives_but_for_the_last_bits(dtype, ragged):
    spec = spec_of(dtype, 4)
    encoder = spec.load("cpu")
    asked = steps(spec, ragged=ragged)
    each = torch.cat([alone(encoder, step) for step in asked])
    shared = encoder.forward(asked)
    assert (shared.shape, shared.dtype) == ((4, 1, spec.width), torch.float16)
    assert (shared.float() - each.float()).abs().max() <= MOST_APART[dtype]
    assert torch.nn.functional.cosine_similarity(shared.float(), each.float(), dim=-1).min() > 0.99999
    apart = torch.cdist(shared[:, 0].float(), each[:, 0].float())
    assert apart.argmin(dim=1).tolist() == list(range(4)), "a feature is nearest to its own step's"
    backwards = encoder.forward(asked[::-1])
    assert (backwards.flip(0).float() - each.float()).abs().max() <= MOST_APART[dtype]


@pytest.mark.parametrize("dtype", MOST_APART)
def test_a_batch_of_one_has_the_bits_of_a_forward_of_its_own(dtype):
    spec = spec_of(dtype, 4)
    encoder, plain = spec.load("cpu"), spec_of(dtype).load("cpu")
    for step in steps(spec, ragged=True)[1:3]:
        assert torch.equal(encoder.forward([step]), alone(plain, step))


@pytest.mark.parametrize("at_most", [1, 2, 3])
def test_a_batch_in_parts_has_on_the_cpu_the_bits_of_the_whole(at_most):
    spec = spec_of("float32", 4)
    encoder = spec.load("cpu")
    asked = steps(spec, ragged=True)
    assert torch.equal(encoder.forward(asked, at_most=at_most), encoder.forward(asked))


def test_the_batch_is_part_of_the_recipe_and_a_batch_of_one_is_none():
    plain, one, four, eight = (spec_of("float32", size).recipe() for size in (None, 1, 4, 8))
    assert one == plain
    assert plain["batch"] == "one unpadded forward per step"
    assert "4 consecutive steps" in four["batch"]
    assert len({plain["batch"], four["batch"], eight["batch"]}) == 3
    assert {**four, "batch": ""} == {**plain, "batch": ""}


def test_only_qwen_takes_it_and_no_step_is_too_few():
    for family in ("longva", "huggingface"):
        with pytest.raises(EncoderError, match=f"{family} has no option micro_batch"):
            load_spec(family, "small", micro_batch=2)
    with pytest.raises(EncoderError, match="at least 1"):
        spec_of("float32", 0)
