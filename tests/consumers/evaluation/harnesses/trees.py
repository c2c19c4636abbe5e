"""Benchmarks as each harness has them on disk, with a feature for each video under the name that a build gives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_store import FeatureStore, VideoKey, model_signature, video_value
from pipeline.sources import BENCHMARKS, Benchmark
from tests.consumers.evaluation.conftest import NFRAME
from tests.pipeline.sources.files import touch, write_rows


@dataclass(frozen=True)
class Tree:
    """One video of a benchmark: its annotations, its file, and the names under which its questions come."""

    source: str  # of `vlm-cache build`
    annotations: str
    row: dict[str, Any]
    video: str
    datasets: tuple[str, ...]

    def fill(self, root: Path, store: Path) -> Path:
        """Write the benchmark below `root` and its features into `store`; the video's path, as the harness says it."""
        touch(root / self.video)
        write_rows(root / self.annotations, [{"question": "Why?", **self.row}])
        with FeatureStore(store) as features:
            for sample in Benchmark(BENCHMARKS[self.source], root):
                key = VideoKey(sample.dataset, sample.video_id, NFRAME, model_signature("small", -2))
                value = torch.full((NFRAME, 36, 64), 0.5, dtype=torch.float16)
                features.put(key, video_value(key, value, video_path=sample.relative_path))
        return root / self.video


VLMEVALKIT = (
    Tree("video-mme", "Video-MME.tsv", {"index": 0, "video": "fFjv93"}, "video/fFjv93.mp4", ("Video-MME",)),
    Tree(
        "long-video-bench",
        "LongVideoBench.tsv",
        {"index": 0, "video": "-Ab_1", "video_path": "./videos/-Ab_1.mp4"},
        "./videos/-Ab_1.mp4",
        ("LongVideoBench",),
    ),
    Tree(
        "video-mmmu",
        "VideoMMMU.tsv",
        {"index": 0, "id": "dev_Art_1", "category": "Perception", "video": "videos/Art/dev_Art_1.mp4"},
        "videos/Art/dev_Art_1.mp4",
        ("VideoMMMU",),
    ),
    Tree(
        "mvbench",
        "MVBench_MP4.tsv",
        {"index": 0, "task_type": "action_sequence", "prefix": "video/star/Charades_segment", "video": "ZS9XR.mp4"},
        "video/star/Charades_segment/ZS9XR.mp4",
        ("MVBench_MP4",),
    ),
    Tree(
        "temp-compass",
        "TempCompass_MCQ.tsv",
        {"index": 0, "task_type": "multi-choice", "prefix": "./videos", "video": "1039490", "suffix": ".mp4"},
        "./videos/1039490.mp4",
        ("TempCompass_MCQ", "TempCompass_YorN", "TempCompass_Captioning"),
    ),
    Tree(
        "mlvu",
        "MLVU_MCQ.tsv",
        {"index": 0, "task_type": "plotQA", "prefix": "MLVU/video/1_plotQA", "video": "movie101_1.mp4"},
        "MLVU/video/1_plotQA/movie101_1.mp4",
        ("MLVU_MCQ", "MLVU_OpenEnded"),
    ),
)

LMMS_EVAL = (
    Tree(
        "video-mme",
        "videomme/test-00000-of-00001.parquet",
        {"video_id": "001", "videoID": "fFjv93", "question_id": "001-1"},
        "data/fFjv93.mp4",
        ("videomme", "videomme_w_subtitle", "videomme_long"),
    ),
    Tree(
        "long-video-bench",
        "lvb_val.json",
        {"id": "-Ab_1_0", "video_id": "-Ab_1", "video_path": "-Ab_1.mp4"},
        "videos/-Ab_1.mp4",
        ("longvideobench_val_v",),
    ),
    Tree(
        "video-mmmu",
        "Perception/test-00000-of-00001.parquet",
        {"id": "dev_Art_1"},
        "Art/dev_Art_1.mp4",
        ("video_mmmu_perception", "video_mmmu_adaptation", "video_mmmu_comprehension"),
    ),
    Tree(
        "mvbench",
        "json/action_sequence.json",
        {"video": "ZS9XR.mp4"},
        "star/Charades_segment/ZS9XR.mp4",
        ("mvbench_action_sequence",),
    ),
    Tree(
        "temp-compass",
        "multi-choice/test-00000-of-00001.parquet",
        {"video_id": "1039490", "dim": "order"},
        "videos/1039490.mp4",
        ("tempcompass_multi_choice", "tempcompass_yes_no", "tempcompass_caption_matching", "tempcompass_captioning"),
    ),
    Tree("mlvu", "test-00000-of-00001.parquet", {"video_name": "movie_1.mp4"}, "movie_1.mp4", ("mlvu_dev",)),
)
