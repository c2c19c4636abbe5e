"""Units that do not fit into the device's memory are split without a loss, what was learnt is kept, hangs are named."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cache_store import StepKey
from pipeline.decode_unit import DecodedUnit, StepBatch
from pipeline.encoders.base import StepInput
from pipeline.encoders.transfer import Transfer
from pipeline.lanes.batch_sizes import BatchSizes
from pipeline.lanes.device import DeviceStage
from pipeline.lanes.one_at_a_time import Hung
from pipeline.sources import StepSample
from pipeline.work_plan import Unit
from tests.pipeline.lanes.small_memory import Hanging, SmallMemory, video

RECIPE = {"family": "test", "dtype": "float32", "weights": "none", "frames_per_forward": None}


@pytest.fixture
def sizes_file(tmp_path):
    return tmp_path / "batch_sizes.json"


def stage_of(encoder, sizes_file, *, limit_s: float = 30.0, recipe=RECIPE, device_name: str = "cpu") -> DeviceStage:
    return DeviceStage(encoder, "cpu", BatchSizes(sizes_file, recipe, device_name=device_name), limit_s=limit_s)


def test_a_unit_too_large_for_the_device_gives_the_same_features_in_parts(sizes_file):
    whole = stage_of(SmallMemory(room=1000), sizes_file).encode(video(37))
    small = SmallMemory(room=5)
    split = stage_of(small, sizes_file).encode(video(37))
    assert torch.equal(split.value["vision_features"], whole.value["vision_features"])
    assert small.sizes[:2] == [37, 37], "the same once more, for memory that was only busy"
    assert max(small.sizes[-7:]) <= 5
    assert (split.split_into, split.provenance["frames_per_forward"]) == (5, 5)
    assert whole.split_into is None
    assert "frames_per_forward" not in whole.provenance


def test_the_size_is_learnt_once_and_kept_for_the_same_model_dtype_and_device(sizes_file):
    stage_of(SmallMemory(room=5), sizes_file).encode(video(37))
    again = SmallMemory(room=5)
    stage = stage_of(again, sizes_file)
    assert stage.encode(video(37)).split_into == 5
    assert max(again.sizes) == 5, "tried again what cannot fit"
    assert stage.encode(video(4)).split_into is None, "a short video is not split"
    assert len(json.loads(sizes_file.read_text())) == 1
    for options in ({"recipe": {**RECIPE, "dtype": "float16"}}, {"device_name": "larger card"}):
        other = SmallMemory(room=1000)
        assert stage_of(other, sizes_file, **options).encode(video(37)).split_into is None
    smaller_asked = SmallMemory(room=5)
    smaller_asked.frames_per_forward = 3
    recipe = {**RECIPE, "frames_per_forward": 3}
    assert stage_of(smaller_asked, sizes_file, recipe=recipe).encode(video(37)).split_into is None


@pytest.mark.parametrize("content", ["", "[]", "{no json", '{"x": "y"}'])
def test_a_damaged_file_of_learnt_sizes_is_only_forgotten(sizes_file, content):
    sizes_file.write_text(content)
    assert stage_of(SmallMemory(room=5), sizes_file).encode(video(37)).split_into == 5
    assert list(json.loads(sizes_file.read_text()).values()) == [5]


def test_a_frame_that_does_not_fit_is_out_of_memory(sizes_file):
    stage = stage_of(SmallMemory(room=0), sizes_file)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="single frame"):
        stage.encode(video(3))
    assert not sizes_file.exists(), "nothing was learnt"


def test_an_error_that_is_not_of_memory_is_not_tried_again(sizes_file):
    encoder = SmallMemory(room=10)
    tried = []
    encoder.forward = lambda pixels, at_most=None: tried.append(len(pixels)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        stage_of(encoder, sizes_file).encode(video(3))
    assert tried == [3]


class StepsOnce:
    """Has no memory for its first step."""

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, steps, *, at_most=None):
        self.calls += 1
        if self.calls == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return steps[0].images[0].float().mean().reshape(1, 1, 1)


def test_a_step_cannot_be_split_and_is_tried_once_more(sizes_file):
    decoded = video(1)
    step = DecodedUnit(decoded.unit, StepInput((np.ones((2, 2, 3), np.uint8),), "lift"), {}, 0.0)
    assert stage_of(StepsOnce(), sizes_file).encode(step).split_into is None


class RoomForSteps:
    """Gives each step's mean, [steps, 1, 1]; more than `room` steps at once do not fit."""

    def __init__(self, room: int) -> None:
        self.room = room

    def forward(self, steps, *, at_most=None):
        if min(at_most or len(steps), len(steps)) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return torch.stack([step.images[0].float().mean().reshape(1, 1) for step in steps])


def step_units(count: int) -> list[DecodedUnit]:
    inputs = {30 * n: StepInput((np.full((2, 2, 3), n, np.uint8),), "lift") for n in range(count)}
    batch = StepBatch(inputs, wanted=count)
    samples = [StepSample("episode", idx, (), "lift") for idx in inputs]
    units = [Unit(f"episode_vlm{one.vlm_idx}", StepKey("episode", one.vlm_idx), one) for one in samples]
    return [DecodedUnit(unit, inputs[unit.sample.vlm_idx], {}, 0.0, batch) for unit in units]


def test_a_batch_of_steps_that_does_not_fit_is_split_and_each_feature_is_its_own_steps(sizes_file):
    units = step_units(5)
    whole = stage_of(RoomForSteps(5), sizes_file).encode_batch(units)
    assert [one.split_into for one in whole] == [None] * 5
    assert not sizes_file.exists()
    split = stage_of(RoomForSteps(2), sizes_file).encode_batch(units[1:4])
    assert [one.unit.sample.vlm_idx for one in split] == [30, 60, 90], "the others are only there for their bits"
    for encoded, before in zip(split, whole[1:4], strict=True):
        assert torch.equal(encoded.value, before.value)
        assert encoded.value.untyped_storage().nbytes() == encoded.value.nbytes
        assert encoded.provenance["steps_together"] == [0, 30, 60, 90, 120]
        assert (encoded.split_into, encoded.provenance["steps_per_forward"]) == (2, 2)
        assert before.provenance == {key: v for key, v in encoded.provenance.items() if key != "steps_per_forward"}
    assert list(json.loads(sizes_file.read_text()).values()) == [2]
    with pytest.raises(torch.cuda.OutOfMemoryError, match="a single step"):
        stage_of(RoomForSteps(0), sizes_file).encode_batch(units)


def test_a_hanging_forward_is_given_up_and_waiting_for_a_turn_is_not_hanging(sizes_file):
    encoder = Hanging()
    stage = stage_of(encoder, sizes_file, limit_s=0.4)
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(stage.encode, video(2, fill=255))
        with pytest.raises(Hung, match=r"no result after 0\.4 s"):
            hanging.result()
        waiting = pool.submit(stage.encode, video(2, fill=1, name="b"))
        encoder.gate.set()
        assert waiting.result().unit.name == "b"


def test_units_that_come_at_once_have_one_forward_at_a_time_and_keep_their_own_features(sizes_file):
    inside, most = [], []
    lock = threading.Lock()

    class Watching(SmallMemory):
        def forward(self, pixels, *, at_most=None):
            with lock:
                inside.append(1)
                most.append(len(inside))
            result = super().forward(pixels, at_most=at_most)
            with lock:
                inside.pop()
            return result

    stage = stage_of(Watching(room=100), sizes_file)
    units = [video(3, fill=number, name=str(number)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        encoded = list(pool.map(stage.encode, units))
    assert max(most) == 1
    for number, one in enumerate(encoded):
        assert one.unit.name == str(number)
        assert (one.value["vision_features"] == number).all()


def test_what_comes_from_the_device_has_storage_of_its_own_and_takes_gradients():
    transfer = Transfer("cpu")
    with torch.inference_mode():
        result = transfer.run(lambda: torch.arange(100.0)[10:20])
    host, seconds = transfer.to_host(result)
    assert host.untyped_storage().nbytes() == 40
    assert seconds >= 0
    (host.requires_grad_() * 2).sum().backward()
