"""Small robot episodes of both formats, with arrays that tests know, and stores that hold features for their steps."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_store import FeatureStore, StepKey

VIEWS = ("View1", "View10", "View2")
START_S = 1762725445.0
RECIPE = {
    "version": 1,
    "encoder": {"model": "small"},
    "images": {"views": list(VIEWS), "decoder": "PIL"},
    "prompt": {"instruction_sha256": "0" * 64},
}


def write_old(folder: Path, *, rows: int = 40, sensor: Any = None, seed: int = 0, **more: Any) -> dict[str, np.ndarray]:
    """Write an old-format episode with robot states two rows shorter than its actions; return its arrays."""
    rng = np.random.default_rng(seed)
    images = {view: [f"{view}/{row:04d}.jpg" for row in range(rows)] for view in VIEWS}
    for path in (folder / name for names in images.values() for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    arrays = {"action": rng.normal(size=(rows, 7)), "robot_states": rng.normal(size=(rows - 2, 12))}
    data = {"action": arrays["action"], "image": images, "instruction": "Insert it.", "sensor_data": sensor, **more}
    (folder / "data.pkl").write_bytes(pickle.dumps(data, protocol=4))
    np.savez(folder / "robot_states.npz", robot_states=arrays["robot_states"])
    return arrays


def write_new(
    folder: Path, *, poses: int = 214, sensor: str | None = "raw", states: str = "npz", seed: int = 0, **metadata: Any
) -> dict[str, np.ndarray]:
    """Write a new-format episode with ten images a second in each view; return its arrays."""
    rng = np.random.default_rng(seed)
    for view in VIEWS:
        (folder / "images" / view).mkdir(parents=True, exist_ok=True)
        for number in range(poses // 10):
            (folder / "images" / view / f"ZED_1_{view}_{START_S + number / 10:.3f}.jpg").touch()
    (folder / "metadata.json").write_text(json.dumps({"camera_views": list(VIEWS), **metadata}))
    arrays = {"robot_states": rng.normal(size=(poses, 12)) * ([1] * 9 + [120] * 3)}
    if states == "npz":
        np.savez(folder / "robot_states.npz", **arrays)
    else:
        names = [f"joint_{n}" for n in range(1, 7)] + [f"pose_{axis}" for axis in "xyzabr"]
        lines = [
            ",".join(["time", *names]),
            *(",".join(["0", *map(repr, row)]) for row in arrays["robot_states"].tolist()),
        ]
        (folder / "robot_states.csv").write_text("\n".join(lines) + "\n")
    count = int(poses * 6.5)
    if sensor in ("raw", "compressed"):
        save, name = (
            (np.savez, "sensor_data_1762725445.npz") if sensor == "raw" else (np.savez_compressed, "sensor_data.npz")
        )
        arrays["alines"] = rng.normal(size=(count, 1025)).astype(np.float32)
        arrays["forces"] = rng.normal(size=count).astype(np.float32)
        save(
            folder / name, timestamps=START_S + np.arange(count) / 650, alines=arrays["alines"], forces=arrays["forces"]
        )
    elif sensor == "prepared":
        arrays["data"] = rng.normal(size=(poses // 10, 50, 1026)).astype(np.float32)
        np.savez(folder / "sensor_data.npz", timestamps=START_S + np.arange(poses // 10), data=arrays["data"])
    return arrays


def fill(root: Path, episode: str, steps: Any, *, recipe: dict[str, Any] | None = None, **key: Any) -> None:
    """Put one feature for each step; its values tell the episode and the step."""
    with FeatureStore(root) as store:
        for step in steps:
            store.put(StepKey(episode, int(step), **key), feature_of(episode, int(step)), recipe=recipe)


def feature_of(episode: str, step: int) -> torch.Tensor:
    return torch.tensor([sum(map(ord, episode)) % 1000, step, 1.0], dtype=torch.float16).reshape(1, 1, 3)
