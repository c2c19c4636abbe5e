"""Rows `train` and `load-episodes`: a training on cached features beside one that runs the model, and loading alone.

The model is the small random Qwen2.5-VL; a real one makes the uncached run slower still. Both runs see the same samples
in the same order and must end with the very same losses.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.consumers.scale import Scale
from benchmarks.store.report import Row, rate_lines
from cache_store import FeatureStore, StepKey
from consumers.training import UnifiedVLADataset, VLAEpisodeSet, create_unified_dataloader, unified_collate_fn
from pipeline.encoders.base import StepInput
from pipeline.encoders.qwen2_5_vl import qwen2_5_vl_spec
from pipeline.sources import VLAEpisodes
from pipeline.vision.images import read_image

VIEWS, HZ = ("left", "right"), 10
BATCH = 8


class Live:
    """Features from images, by the model: what a training does without a cache."""

    def __init__(self) -> None:
        spec = qwen2_5_vl_spec("small")
        self._preprocess, self._encoder = spec.preprocess, spec.load("cpu")

    def feature(self, images: Iterable[str | Path], instruction: str) -> torch.Tensor:
        pixels = tuple(self._preprocess(read_image(Path(path))) for path in images)
        return self._encoder.encode(StepInput(pixels, instruction))


class OldScripts(Dataset[Any]):
    """The reading of the old loader: an archive opened for each window, `torch.load` for each feature."""

    def __init__(self, episodes: VLAEpisodeSet) -> None:
        self._samples = [
            (episode.data_dir, index, Path(episode.cache_root, f"{episode.data_dir.name}_vlm{index // 3 * 30}.pt"))
            for episode in episodes.episodes
            for index in range(len(episode))
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        folder, sample, feature = self._samples[index]
        start = max(0, sample * 65 - 32)
        with np.load(folder / "sensor_data.npz") as archive:
            rows = [archive["alines"][start : start + 65], archive["forces"][start : start + 65, None]]
        window = np.concatenate(rows, axis=1)
        padded = np.concatenate([window, np.zeros((65 - len(window), 1026), np.float32)])
        return torch.from_numpy(padded), torch.load(feature, weights_only=True)


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Training on cached features beside training that runs the model, and the loading of its samples alone."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    live = Live()
    make_episodes(folder / "insertion", scale.episodes, poses=scale.poses)
    fill(folder / "insertion", folder / "cache", live)
    return [training_row(folder, live, scale.rounds), loading_row(folder, scale)]


def make_episodes(folder: Path, count: int, *, poses: int) -> None:
    """Write new-format episodes with two cameras of 320 x 240 at ten images a second, and a raw sensor."""
    rng = np.random.default_rng(0)
    for number in range(count):
        episode = folder / f"episode_{number:03d}"
        for view in VIEWS:
            (episode / "images" / view).mkdir(parents=True)
            for frame in range(poses // HZ):
                pixels = rng.integers(0, 255, (24, 32, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
                Image.fromarray(pixels).save(episode / "images" / view / f"{1000 + frame / HZ:.3f}.jpg")
        (episode / "metadata.json").write_text(json.dumps({"camera_views": VIEWS}))
        np.savez(episode / "robot_states.npz", robot_states=rng.normal(size=(poses, 12)).astype(np.float32))
        readings = int(poses * 6.5)
        np.savez(
            episode / "sensor_data.npz",
            timestamps=1000 + np.arange(readings) / 650,
            alines=rng.normal(size=(readings, 1025)).astype(np.float32),
            forces=rng.normal(size=readings).astype(np.float32),
        )


def fill(data: Path, root: Path, live: Live) -> None:
    """Build the cache, without Ray: the very forward of the build."""
    with FeatureStore(root) as store:
        for step in VLAEpisodes(data):
            feature = live.feature([image.path for image in step.images], step.instruction)  # type: ignore[misc]
            store.put(StepKey(step.dataset, step.vlm_idx), feature)


def training_row(folder: Path, live: Live, rounds: int) -> Row:
    """Samples a second of one epoch of a small action head, with features from the cache and from the model."""
    ways: dict[str, Callable[[dict[str, Any], int], torch.Tensor]] = {
        "uncached": lambda batch, at: live.feature(batch["images"][at], batch["instruction"][at]),
        "cached": lambda batch, at: batch["vl_cache"][at],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, feature in ways.items():
            with redirect_stdout(StringIO()):  # the coverage
                loader = create_unified_dataloader(
                    None,
                    [folder / "insertion"],
                    cache_root=folder / "cache",
                    use_cache=name == "cached",
                    batch_size=BATCH,
                    num_workers=0,
                )
            start_s = time.perf_counter()
            losses[name] = train(loader, feature)
            rates[name].append(len(loader.dataset) / (time.perf_counter() - start_s))  # type: ignore[arg-type]
    if losses["cached"] != losses["uncached"]:
        raise RuntimeError("the losses of the cached and of the uncached training differ")
    return Row(
        "train",
        f"train an action head for one epoch, batches of {BATCH}, no worker processes",
        "samples/s",
        rate_lines(rates, base="uncached"),
        [
            f"The losses of both runs are equal to the last bit in {len(losses['cached'])} steps. Both read the same "
            "sensor windows, robot states and actions."
        ],
    )


def train(loader: DataLoader[Any], feature: Callable[[dict[str, Any], int], torch.Tensor]) -> list[float]:
    """Train for one epoch from a fixed seed; the loss of each step."""
    torch.manual_seed(0)
    head, losses = nn.Sequential(nn.LazyLinear(64), nn.GELU(), nn.Linear(64, 56)), []
    optimizer = None
    for batch in loader:
        features = torch.stack([feature(batch, at).flatten() for at in range(len(batch["cache_keys"]))]).float()
        loss = nn.functional.mse_loss(head(features).view(-1, 8, 7), batch["actions"])
        optimizer = optimizer or torch.optim.SGD(head.parameters(), lr=1e-2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        optimizer.step()
        losses.append(loss.item())
    return losses


def loading_row(folder: Path, scale: Scale) -> Row:
    """Samples a second of the loader alone, shuffled, against the old scripts' reading."""
    episodes = VLAEpisodeSet(
        UnifiedVLADataset(path, cache_root=folder / "cache", look_up=False)
        for path in sorted((folder / "insertion").iterdir())
    )
    ways: dict[str, tuple[Dataset[Any], Any]] = {
        "the old scripts' reading": (OldScripts(episodes), None),
        "create_unified_dataloader": (episodes, unified_collate_fn),
    }
    rates: dict[str, list[float]] = {}
    for _ in range(scale.rounds):
        for workers in scale.workers:
            for name, (dataset, collate) in ways.items():
                loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=collate)
                start_s = time.perf_counter()
                count = sum(1 for _ in loader) * BATCH
                rate = count / (time.perf_counter() - start_s)
                rates.setdefault(f"{name}, {workers} workers", []).append(rate)
    return Row(
        "load-episodes",
        f"load one shuffled epoch of episodes, batches of {BATCH}, workers started inside",
        "samples/s",
        rate_lines(rates, base="the old scripts' reading, 0 workers"),
        ["The old reading gives the sensor's window and the feature only."],
    )
