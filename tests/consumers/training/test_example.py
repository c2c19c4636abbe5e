"""The example trains: the loss falls on two processes, and a training that was cut off ends as if it had not been."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_store import FeatureStore, StepKey
from consumers.training import CacheIncomplete, UnifiedVLADataset
from tests.consumers.training.episodes import fill, write_new, write_old

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "train" / "train_action_head.py"


@pytest.fixture
def arguments(tmp_path):
    """Three episodes whose features tell, through a fixed random matrix, how the robot will move."""
    mixing = np.random.default_rng(0).normal(size=(3 * 8 * 7, 48)) / 5
    with FeatureStore(tmp_path / "cache") as store:
        for number in range(3):
            folder = tmp_path / "task" / f"episode_{number}"
            write_new(folder, poses=300, sensor=None, seed=number)
            episode = UnifiedVLADataset(folder, use_cache=False)
            for first in range(0, len(episode), 3):
                told = [episode[min(first + n, len(episode) - 1)]["actions"].numpy().ravel() for n in range(3)]
                feature = torch.from_numpy(np.concatenate(told) @ mixing).to(torch.float16)
                store.put(StepKey(folder.name, first * 10), feature.reshape(1, 1, 48))
    return ["--new", str(tmp_path / "task"), "--cache", str(tmp_path / "cache")]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_action_head", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses_of_two_processes(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "3 episodes, 87 samples, VL Cache: 30/30\nVL Cache: 30/30\n" in done.stdout
    return [float(loss) for loss in re.findall(r"epoch \d+: loss (\S+)", done.stdout)]


def test_the_loss_falls_on_two_processes_and_is_told_of_an_epoch_in_which_they_are_cut_off(arguments, tmp_path):
    losses = losses_of_two_processes(*arguments, "--epochs", "20")
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]
    resumable = [*arguments, "--epochs", "1", "--checkpoint", str(tmp_path / "head.pt"), "--save-every", "4"]
    assert losses_of_two_processes(*resumable, "--stop-after", "4") == []  # six batches an epoch
    assert losses_of_two_processes(*resumable) == [pytest.approx(losses[0], abs=2e-5)]


def test_a_training_cut_off_in_the_middle_of_an_epoch_ends_like_a_whole_one(arguments, example, tmp_path):
    whole = example.main([*arguments, "--epochs", "3"])
    resumable = [*arguments, "--epochs", "3", "--checkpoint", str(tmp_path / "head.pt"), "--save-every", "5"]
    assert len(example.main([*resumable, "--stop-after", "17"])) == 1  # eleven batches an epoch
    assert example.main(resumable) == whole


def test_the_end_of_a_training_is_kept_and_goes_on_with_more_epochs(arguments, example, tmp_path):
    whole = example.main([*arguments, "--epochs", "3"])
    resumable = [*arguments, "--checkpoint", str(tmp_path / "head.pt"), "--save-every", "100"]
    for epochs in ("1", "1", "3", "3"):
        assert example.main([*resumable, "--epochs", epochs]) == whole[: int(epochs)]
    saved = torch.load(tmp_path / "head.pt", weights_only=True)
    assert (saved["sampler"]["epoch"], saved["sampler"]["position"], saved["losses"]) == (3, 0, whole)


def test_another_batch_size_goes_on_behind_the_samples_that_were_trained(arguments, example, tmp_path, monkeypatch):
    trained, inputs = [], example.inputs

    def noted(batch):
        trained.extend(zip(batch["cache_keys"], batch["reuse_steps"], strict=True))
        return inputs(batch)

    monkeypatch.setattr(example, "inputs", noted)
    resumable = [*arguments, "--epochs", "1", "--checkpoint", str(tmp_path / "head.pt"), "--save-every", "1"]
    for batch_size in (6, 4, 5):
        example.main([*resumable, "--batch-size", str(batch_size), "--stop-after", "3"])
    example.main([*resumable, "--batch-size", "8"])
    assert len(trained) == len(set(trained)) == 87


def test_the_state_is_that_of_the_samples_own_moment_in_either_format(example, tmp_path):
    new = write_new(tmp_path / "task" / "episode_1", sensor=None)["robot_states"][:200:10]
    old = write_old(tmp_path / "recv_all_1")["robot_states"][:32]
    fill(tmp_path / "cache", "episode_1", range(0, 200, 30))
    fill(tmp_path / "cache", "recv_all_1", range(0, 32, 3))
    stores = ["--cache", str(tmp_path / "cache"), "--batch-size", "100"]
    options = example.parsed(["--new", str(tmp_path / "task"), "--old", str(tmp_path / "recv_all_1"), *stores])
    training = example.Training(options, 0, 1)
    (batch,) = training.loader
    states = example.inputs(batch)[1].numpy()[np.argsort(list(training.loader.sampler._order(0)))]
    assert np.array_equal(states, np.concatenate([old, new]).astype(np.float32))


def test_it_does_not_begin_without_a_feature(arguments, example, tmp_path):
    (tmp_path / "cache" / "episode_1_vlm30.pt").unlink()
    with pytest.raises(CacheIncomplete, match="missing: episode_1_vlm30"):
        example.main(arguments)
