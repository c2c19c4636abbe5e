"""A large plan over a store as large, made cheaply: a LeRobot data set without pixels, half of it stored already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from benchmarks.store.flushing import flushes_skipped
from cache_store import FeatureStore, PutItem, StepKey
from pipeline.encoders import load_spec
from pipeline.encoders.small_models import QWEN, QWEN_CHAT_TEMPLATE, QWEN_PROCESSOR
from pipeline.sources.lerobot import LeRobot
from pipeline.work_plan import BuildTask

STEPS_PER_EPISODE = 2_000
_REUSE = 3  # rows that share a step, the command's default
_BATCH = 2_000


def data_set(folder: Path, units: int) -> Path:
    """A LeRobot 2.1 data set of `units` steps in episodes of 2,000; its one video file is empty.

    Raises:
        ValueError: `units` is no multiple of 2,000.
    """
    episodes, rest = divmod(units, STEPS_PER_EPISODE)
    if rest or not episodes:
        raise ValueError(f"{units} units are no whole number of episodes of {STEPS_PER_EPISODE}")
    rows = STEPS_PER_EPISODE * _REUSE
    _write_lines(folder / "meta/tasks.jsonl", [{"task_index": 0, "task": "Insert the peg."}])
    lengths: list[dict[str, object]] = [{"episode_index": index, "length": rows} for index in range(episodes)]
    _write_lines(folder / "meta/episodes.jsonl", lengths)
    info = {
        "codebase_version": "v2.1",
        "fps": 30,
        "chunks_size": 1000,
        "data_path": "data/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {"top": {"dtype": "video"}},
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "data").mkdir()
    table = pa.table({"task_index": pa.array([0] * rows, pa.int64())})
    for index in range(episodes):
        pq.write_table(table, folder / f"data/episode_{index:06d}.parquet")
    (folder / "videos/top").mkdir(parents=True)
    (folder / "videos/top/episode_000000.mp4").touch()
    return folder


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def checkpoint(folder: Path) -> Path:
    """A checkpoint that can be planned with and not run: its weights are one tensor."""
    folder.mkdir()
    files = {
        "config.json": QWEN,
        "preprocessor_config.json": QWEN_PROCESSOR,
        "chat_template.json": {"chat_template": QWEN_CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file({"weight": torch.zeros(8)}, folder / "model.safetensors")
    return folder


def store(root: Path, data: Path, model: Path, units: int) -> int:
    """Fill a store with `units` entries, flushing nothing; returns its bytes.

    The first half is of another data set and used longest ago; the second half are the first steps of `data`.
    """
    half = units // 2
    task = BuildTask(load_spec("qwen2_5_vl", str(model)), str(root), None)
    width = task.spec.feature_bytes() // 2  # type: ignore[call-arg]
    feature = torch.zeros(1, 1, width, dtype=torch.float16)

    def items() -> Iterator[PutItem]:
        samples = list(zip(range(half), LeRobot(data), strict=False))
        recipe = task.recipe(samples[0][1])
        for index in range(half):
            yield PutItem(StepKey(f"earlier_{index // 200:06d}", index % 200), feature, recipe)
        for _, sample in samples:
            yield PutItem(task.key(sample), feature, recipe)

    with FeatureStore(root) as opened, flushes_skipped():
        batch: list[PutItem] = []
        for item in items():
            batch.append(item)
            if len(batch) == _BATCH:
                opened.put_many(batch)
                batch.clear()
        opened.put_many(batch)
        return opened.stats().bytes
