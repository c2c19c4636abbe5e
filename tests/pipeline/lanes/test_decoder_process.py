"""Decoder processes are light: they turn units into pixels without importing torch or transformers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from cache_store import FeatureStore
from pipeline.decode_unit import decode_unit
from pipeline.encoders import load_spec
from pipeline.encoders.base import StepInput
from pipeline.lanes.cluster import shape_lanes, start_decoder
from pipeline.sources import ImageFile, StepSample, VideoFrame, VideoSample
from pipeline.work_plan import BuildTask, Unit, unit_name
from tests.media import write_video

DECODE = """
import pickle, sys
from pathlib import Path
from pipeline.lanes.decoder_process import DecoderProcess
task, unit = pickle.loads(Path(sys.argv[1]).read_bytes())
outcomes, decoded = DecoderProcess(task, True).decode([unit])
assert outcomes[0].failure is None, outcomes[0]
Path(sys.argv[2]).write_bytes(pickle.dumps(decoded[0].pixels))
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def video(folder: Path) -> tuple[str, VideoSample]:
    path = write_video(folder / "a.mp4", frames=30)
    return "longva", VideoSample("clips", "a", path, path.name)


def step(folder: Path) -> tuple[str, StepSample]:
    Image.new("RGB", (64, 48), "teal").save(folder / "a.png")
    images = (ImageFile("wrist", folder / "a.png"), VideoFrame("top", write_video(folder / "a.mp4"), 3))
    return "qwen2_5_vl", StepSample("episode", 0, images, "pick it up")


@pytest.mark.parametrize("sample_of", [video, step])
def test_a_decoder_imports_neither_torch_nor_transformers(sample_of, tmp_path):
    family, sample = sample_of(tmp_path)
    FeatureStore(tmp_path / "store").close()
    task = BuildTask(load_spec(family, "small"), str(tmp_path / "store"), None, nframe=4)
    unit = Unit(unit_name(sample), task.key(sample), sample)
    asked, given = tmp_path / "asked", tmp_path / "given"
    asked.write_bytes(pickle.dumps((task.for_decoders(), unit)))
    command = [sys.executable, "-c", DECODE, str(asked), str(given)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "[]\n", ran.stdout + ran.stderr
    mine, theirs = decode_unit(unit, task).pixels, pickle.loads(given.read_bytes())
    if isinstance(mine, StepInput):
        assert all(map(np.array_equal, mine.images, theirs.images))
        assert len(mine.images) == len(theirs.images) == 2
    else:
        assert np.array_equal(mine, theirs)


@pytest.mark.usefixtures("local_ray")
def test_neither_does_an_actor_of_a_build(tmp_path):
    _, sample = video(tmp_path)
    task = BuildTask(load_spec("longva", "small"), str(tmp_path / "store"), None, nframe=4)
    shape = shape_lanes(lanes=1, decoders_per_lane=1, device="cpu")
    node = ray.get_runtime_context().get_node_id()
    decoder = start_decoder(task, shape, near_node=node, recheck=True)
    outcomes, _ = ray.get(decoder.decode.remote([Unit(unit_name(sample), task.key(sample), sample)]))
    imported = ray.get(decoder.__ray_call__.remote(lambda _: {"torch", "transformers"} & set(sys.modules)))
    ray.kill(decoder)
    assert outcomes[0].failure is None
    assert imported == set()


def test_decoders_are_told_the_same_recipe(tmp_path):
    _, sample = video(tmp_path)
    task = BuildTask(load_spec("longva", "small"), str(tmp_path), None, nframe=4)
    assert task.for_decoders().recipe(sample) == task.recipe(sample)
    assert task.for_decoders().key(sample) == task.key(sample)
