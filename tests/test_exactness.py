"""The product's promise, checked without its own code: contract's paths, the live model's bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import decord
import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from jobs.__main__ import main
from tests.media import write_new_episode, write_video


def md5_path(store: Path, dataset: str, video_id: str, nframe: int, tower: str = "small", layer: int = -2) -> Path:
    """Contract 3, written out once more from its text."""
    signature = hashlib.md5(f"{tower}:layer{layer}".encode()).hexdigest()[:8]
    name = hashlib.md5(f"{dataset}:{video_id}:nframe{nframe}:model{signature}".encode()).hexdigest()
    return store / dataset / f"{name}.pt"


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*.pt"))
    }


def build(*arguments: object) -> int:
    return main(["build", *map(str, arguments)])


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "my-videos"
    for number, frames in enumerate([24, 40, 5, 17, 33]):
        write_video(folder / f"clip_{number}.mp4", frames=frames, seed=number)
    return folder


@pytest.fixture
def clip_folder(tmp_path) -> Path:
    """A CLIP vision tower as `save_pretrained` writes it, of odd sizes, so that nothing fits by chance."""
    folder = tmp_path / "tiny-clip"
    torch.manual_seed(5)
    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_video_features_are_the_bits_of_a_straight_forward(videos, clip_folder, tmp_path, dtype):
    store = tmp_path / "store"
    arguments = ["--source", "folder", "--data", videos, "--encoder", "longva", "--model", clip_folder]
    assert build(*arguments, "--store", store, "--nframe", 16, "--dtype", dtype) == 0

    tower = CLIPVisionModel.from_pretrained(clip_folder, dtype=getattr(torch, dtype)).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    for video in sorted(videos.iterdir()):
        reader = decord.VideoReader(str(video), ctx=decord.cpu(0))
        n = len(reader)
        indices = list(range(n)) if n <= 16 else np.linspace(0, n - 1, 16, dtype=int).tolist()
        frames = reader.get_batch(indices).asnumpy()
        pixels = processor.preprocess(list(frames), return_tensors="pt")["pixel_values"].to(getattr(torch, dtype))
        with torch.inference_mode():
            live = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        entry = torch.load(md5_path(store, "my-videos", video.stem, 16, tower="tiny-clip"), weights_only=True)
        assert torch.equal(entry["vision_features"], live)
        signature = hashlib.md5(b"tiny-clip:layer-2").hexdigest()[:8]
        del entry["vision_features"]
        assert entry == {
            "video_id": video.stem,
            "video_path": video.name,
            "nframe": 16,
            "dataset": "my-videos",
            "model_signature": signature,
            "dtype": dtype,
            "shape": [len(indices), 16, 48],
        }


@pytest.mark.usefixtures("local_ray")
def test_step_features_lie_at_the_contracts_path_as_one_float16_tensor(tmp_path):
    write_new_episode(tmp_path / "peg_task" / "episode_20251030_025119", poses=100)
    store = tmp_path / "store"
    arguments = ["--source", "vla", "--data", tmp_path / "peg_task", "--encoder", "qwen2_5_vl", "--model", "small"]
    assert build(*arguments, "--store", store) == 0
    # 100 poses at 100 Hz and 10 actions a second: 9 samples, three to a step.
    assert sorted(path.name for path in store.glob("*.pt")) == [
        "episode_20251030_025119_vlm0.pt",
        "episode_20251030_025119_vlm30.pt",
        "episode_20251030_025119_vlm60.pt",
    ]
    feature = torch.load(store / "episode_20251030_025119_vlm30.pt", weights_only=True)
    assert isinstance(feature, torch.Tensor)
    assert (feature.dtype, feature.shape[:2], feature.dim()) == (torch.float16, (1, 1), 3)


@pytest.mark.usefixtures("local_ray")
def test_lanes_and_order_do_not_change_a_byte(videos, tmp_path):
    rows = [{"videoID": path.stem, "question": "?"} for path in sorted(videos.iterdir())]
    (tmp_path / "forward.json").write_text(json.dumps(rows))
    (tmp_path / "backward.json").write_text(json.dumps(rows[::-1]))
    stores = {}
    for name, order, lanes in [("one", "forward", 1), ("two", "backward", 2)]:
        stores[name] = tmp_path / name
        assert (
            build(
                *["--source", "video-mme", "--data", videos, "--annotations", tmp_path / f"{order}.json"],
                *["--encoder", "longva", "--model", "small", "--store", stores[name], "--nframe", 16],
                *["--lanes", lanes],
            )
            == 0
        )
    expected = digests(stores["one"])
    assert len(expected) == 5
    assert digests(stores["two"]) == expected


@pytest.mark.usefixtures("local_ray")
def test_an_evaluation_finds_every_feature_that_a_build_made_and_answers_with_the_same_bits(videos, tmp_path, capsys):
    asked = {"question": "What happens?", "options": ["A. this", "B. that"], "answer": "A"}
    rows = [{"videoID": path.stem, **asked} for path in sorted(videos.iterdir())]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    what = ["--source", "video-mme", "--data", videos, "--annotations", tmp_path / "questions.json", "--nframe", 16]
    what += ["--store", tmp_path / "store", "--model", "small"]
    assert build(*what, "--encoder", "longva") == 0
    capsys.readouterr()
    assert main(["evaluate", *map(str, what), "--results", str(tmp_path / "results"), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["questions"], model["agreeing"], model["hits"]) == (5, 5, 5)


@pytest.mark.usefixtures("local_ray")
def test_a_build_killed_in_the_middle_resumes_to_the_same_bytes(tmp_path, capsys):
    videos = tmp_path / "videos"
    for number in range(24):
        write_video(videos / f"{number:02d}.mp4", frames=8, seed=number)
    arguments = ["--source", "folder", "--data", str(videos), "--encoder", "longva", "--model", "small"]
    arguments += ["--nframe", "8", "--store"]

    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    run = subprocess.Popen(
        [sys.executable, "-m", "jobs", "build", *arguments, str(interrupted)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(interrupted.rglob("*.pt")):
        assert run.poll() is None, "the build ended before it could be killed"
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    survived = digests(interrupted)
    assert 0 < len(survived) < 24, "killed too early or too late to show anything"

    assert build(*arguments, interrupted, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skipped"] >= len(survived)
    assert report["done"] + report["skipped"] == 24
    assert build(*arguments, whole) == 0
    assert digests(interrupted) == digests(whole)
    assert survived.items() <= digests(whole).items()
    shutil.rmtree(interrupted)
