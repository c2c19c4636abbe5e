"""Every number of a sample against the contract's words, restated here one by one with nothing of the loader's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from consumers.training import UnifiedVLADataset, unified_collate_fn
from tests.consumers.training.episodes import START_S, VIEWS, feature_of, fill, write_new, write_old

KEYS = [
    *["instruction", "images", "vl_cache", "sensor_data", "robot_states", "actions", "has_sensor", "has_robot_states"],
    *["cache_key", "vlm_idx", "reuse_step", "confidence", "prompt_hash"],
]
BATCH_KEYS = [
    *["instruction", "images", "vl_cache", "sensor_data", "robot_states", "actions", "has_sensor_mask"],
    *["has_robot_states_mask", "cache_keys", "vlm_indices", "reuse_steps", "confidence", "prompt_hash", "episode_ids"],
]


def row_or_zeros(array, row, width):
    return array[row] if 0 <= row < len(array) else np.zeros(width)


def matrix(euler_degrees):
    """Turn about the fixed axis x, then y, then z."""
    a, b, c = (math.radians(angle) for angle in euler_degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def rotation_vector(turn):
    """Axis times angle of a rotation matrix: the axis is the eigenvector that the turn leaves alone."""
    angle = math.acos(max(-1.0, min(1.0, (np.trace(turn) - 1) / 2)))
    values, vectors = np.linalg.eig(turn)
    axis = np.real(vectors[:, np.argmin(abs(values - 1))])
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    return axis * angle * (1 if axis @ skew >= 0 else -1)


def new_action(states, k, interval, count):
    if count - k <= 5:
        return np.array([0, 0, 0, 0, 0, 0, 1.0])
    start, end = (states[(k + n) * interval, 6:].astype(np.float32).astype(float) for n in (0, 1))
    turn = matrix(end[3:]) @ np.linalg.inv(matrix(start[3:]))
    return np.array([*(end[:3] - start[:3]), *rotation_vector(turn), 1.0])


@pytest.mark.parametrize("states", ["npz", "csv"])
@pytest.mark.parametrize("sensor", ["raw", "compressed"])
@pytest.mark.parametrize("rates", [{}, {"robot_hz": 60, "sensor_hz": 640}])
def test_every_number_of_the_new_format(tmp_path, states, sensor, rates):
    folder = tmp_path / "blue_point" / "episode_20251030_025119"
    arrays = write_new(folder, sensor=sensor, states=states, **rates)
    robot_hz, sensor_hz = rates.get("robot_hz", 100), rates.get("sensor_hz", 650)
    interval, poses, recorded = robot_hz // 10, arrays["robot_states"], len(arrays["alines"])
    count = max(0, (len(poses) - interval) // interval)
    found = UnifiedVLADataset(folder, use_cache=False)
    assert len(found) == count
    for i, sample in enumerate(found):
        assert list(sample) == [*KEYS, "episode_id", "timestamp"]
        step = (i // 3) * interval * 3
        assert (sample["vlm_idx"], sample["reuse_step"], sample["confidence"]) == (step, i % 3, 1.0)
        assert sample["cache_key"] == f"episode_20251030_025119_vlm{step}"
        assert sample["episode_id"] == "episode_20251030_025119"
        assert sample["instruction"] == "Perform blue point insertion task."
        assert sample["timestamp"] == pytest.approx(START_S + step / robot_hz, abs=1e-6)
        assert (sample["has_sensor"], sample["has_robot_states"], sample["vl_cache"]) == (True, True, None)
        # W = 65 around the sample's moment, moved inside of the recording.
        centre = int(i * interval * sensor_hz / robot_hz)
        start = max(0, centre - 32)
        start = max(0, min(start + 65, recorded) - 65)
        window = [[*arrays["alines"][start + n], arrays["forces"][start + n]] for n in range(65)]
        assert np.array_equal(sample["sensor_data"], np.array(window, np.float32))
        first = max(0, i * interval - 50)
        robot = [row_or_zeros(poses, first + n, 12) for n in range(100)]
        assert np.array_equal(sample["robot_states"], np.array(robot, np.float32))
        actions = np.array([new_action(poses, i + n, interval, count) for n in range(8)])
        assert np.allclose(sample["actions"], actions, rtol=0, atol=2e-6)
        assert [sample[name].dtype for name in ("sensor_data", "robot_states", "actions")] == [torch.float32] * 3


def test_a_step_has_the_image_nearest_in_time(tmp_path):
    write_new(tmp_path / "episode_1")
    for sample in UnifiedVLADataset(tmp_path / "episode_1", use_cache=False, vlm_reuse_count=1):
        names = [f"ZED_1_{view}_{START_S + min(sample['vlm_idx'] // 10, 20) / 10:.3f}.jpg" for view in VIEWS]
        assert sample["images"] == [
            str(tmp_path / "episode_1" / "images" / view / name) for view, name in zip(VIEWS, names, strict=True)
        ]


def test_prepared_windows_are_those_of_their_samples(tmp_path):
    arrays = write_new(tmp_path / "episode_1", sensor="prepared")
    for i, sample in enumerate(UnifiedVLADataset(tmp_path / "episode_1", use_cache=False)):
        assert np.array_equal(sample["sensor_data"], np.concatenate([arrays["data"][i], np.zeros((15, 1026), "f4")]))
    longer = UnifiedVLADataset(tmp_path / "episode_1", use_cache=False, sensor_window_size=20)
    assert np.array_equal(longer[3]["sensor_data"], arrays["data"][3])


@pytest.mark.parametrize("kind", ["none", "array", "dict", "npy"])
def test_every_number_of_the_old_format(tmp_path, kind):
    rng, folder, count = np.random.default_rng(5), tmp_path / "recv_all_20251027_170308", 40
    stacked = rng.normal(size=(count, 1026))
    recorded = {"none": None, "array": stacked, "dict": {"fpi": stacked[:, 1:], "force": stacked[:, :1]}, "npy": None}
    arrays = write_old(folder, rows=count, sensor=recorded[kind])
    if kind == "npy":
        np.save(folder / "sensor_data.npy", stacked)
    found = UnifiedVLADataset(folder, use_cache=False, sensor_window_size=30, robot_window_size=20)
    assert len(found) == count - 8
    for i, sample in enumerate(found):
        assert list(sample) == KEYS
        step = min((i // 3) * 3, count - 1)
        assert (sample["vlm_idx"], sample["reuse_step"]) == (step, i % 3)
        assert sample["cache_key"] == f"recv_all_20251027_170308_vlm{step}"
        assert sample["instruction"] == "Insert it."
        assert sample["images"] == [str(folder / view / f"{step:04d}.jpg") for view in VIEWS]
        assert (sample["has_sensor"], sample["confidence"]) == ((False, 0.5) if kind == "none" else (True, 1.0))
        sensor = np.zeros((0, 1026)) if kind == "none" else stacked
        window = [row_or_zeros(sensor, i + n, 1026) for n in range(30)]
        assert np.array_equal(sample["sensor_data"], np.array(window, np.float32))
        robot = [row_or_zeros(arrays["robot_states"], i + n, 12) for n in range(20)]
        assert np.array_equal(sample["robot_states"], np.array(robot, np.float32))
        actions = arrays["action"].copy()
        actions[[t for t in range(count) if count - t <= 5], :6] = 0
        assert np.array_equal(sample["actions"], actions[i : i + 8].astype(np.float32))


def test_57_steps_of_169_samples_and_the_coverage_line(tmp_path):
    write_new(tmp_path / "episode_1", poses=1700, sensor=None)
    fill(tmp_path / "cache", "episode_1", [*range(0, 1690, 30), 5, 10_000])
    found = UnifiedVLADataset(tmp_path / "episode_1", cache_root=tmp_path / "cache")
    assert (len(found), found.cache_found_count) == (169, 57)
    assert repr(found).endswith("VL Cache: 57/57")
    assert found.vl_cache_files == {n: tmp_path / "cache" / f"episode_1_vlm{n}.pt" for n in range(0, 1690, 30)}


def test_a_hit_has_its_own_steps_feature_and_no_images(tmp_path):
    write_new(tmp_path / "episode_1")
    fill(tmp_path / "cache", "episode_1", range(0, 200, 30))
    for sample in UnifiedVLADataset(tmp_path / "episode_1", cache_root=tmp_path / "cache"):
        assert torch.equal(sample["vl_cache"], feature_of("episode_1", sample["vlm_idx"]))
        assert sample["images"] == []


def test_a_batch_has_the_contracts_keys_lists_and_padding(tmp_path):
    write_new(tmp_path / "episode_1")
    write_old(tmp_path / "recv_all_1")
    fill(tmp_path / "cache", "episode_1", [0])
    options = {"cache_root": tmp_path / "cache"}
    new = UnifiedVLADataset(tmp_path / "episode_1", **options)[0]
    old = UnifiedVLADataset(tmp_path / "recv_all_1", sensor_window_size=70, robot_window_size=40, **options)[4]
    batch = unified_collate_fn([new, old])
    assert list(batch) == BATCH_KEYS
    assert batch["instruction"] == [new["instruction"], "Insert it."]
    assert [len(paths) for paths in batch["images"]] == [0, 3]
    assert torch.equal(batch["vl_cache"][0], feature_of("episode_1", 0))
    assert batch["vl_cache"][1] is None
    assert batch["sensor_data"].shape == (2, 70, 1026)
    assert torch.equal(batch["sensor_data"][0, :65], new["sensor_data"])
    assert not batch["sensor_data"][0, 65:].any()
    assert batch["robot_states"].shape == (2, 100, 12)
    assert torch.equal(batch["robot_states"][1, :40], old["robot_states"])
    assert torch.equal(batch["actions"], torch.stack([new["actions"], old["actions"]]))
    assert batch["has_sensor_mask"].tolist() == [True, False]
    assert batch["has_robot_states_mask"].tolist() == [True, True]
    assert batch["cache_keys"] == ["episode_1_vlm0", "recv_all_1_vlm3"]
    assert (batch["vlm_indices"], batch["reuse_steps"]) == ([0, 3], [0, 1])
    assert batch["confidence"] == [1.0, 0.5]
    assert batch["episode_ids"] == ["episode_1", None]


def test_what_is_disabled_is_zero_and_said(tmp_path):
    write_old(tmp_path / "recv_all_1", sensor=np.ones((40, 1026)))
    sample = UnifiedVLADataset(tmp_path / "recv_all_1", use_cache=False, disable_sensor=True, disable_robot_state=True)[
        0
    ]
    assert not sample["sensor_data"].any()
    assert not sample["robot_states"].any()
    assert (sample["has_sensor"], sample["has_robot_states"], sample["confidence"]) == (False, False, 0.5)


def test_poses_of_their_own_make_the_actions(tmp_path):
    arrays = write_new(tmp_path / "episode_1")
    states = arrays["robot_states"].copy()
    poses = states[::-1, 6:]
    np.savez(tmp_path / "episode_1" / "robot_states.npz", robot_states=states, poses=poses)
    other = np.concatenate([states[:, :6], poses], axis=1)
    expected = [new_action(other, n, 10, 20) for n in range(8)]
    assert np.allclose(UnifiedVLADataset(tmp_path / "episode_1", use_cache=False)[0]["actions"], expected, atol=2e-6)
