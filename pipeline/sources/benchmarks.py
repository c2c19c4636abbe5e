"""The one table of benchmarks: what `--source` calls each, and how it lies on disk.

A new one is a `Layout` in a module of its own (`temp_compass.py` is a short example), a line here, and, for the names
that evaluation harnesses give to it, a line in `cache_store/dataset_names.py`.
"""

from __future__ import annotations

from pipeline.sources.benchmark import Layout
from pipeline.sources.long_video_bench import LONG_VIDEO_BENCH
from pipeline.sources.mlvu import MLVU
from pipeline.sources.mvbench import MVBENCH
from pipeline.sources.temp_compass import TEMP_COMPASS
from pipeline.sources.video_mme import VIDEO_MME
from pipeline.sources.video_mmmu import VIDEO_MMMU

BENCHMARKS: dict[str, Layout] = {
    "video-mme": VIDEO_MME,
    "long-video-bench": LONG_VIDEO_BENCH,
    "video-mmmu": VIDEO_MMMU,
    "mvbench": MVBENCH,
    "temp-compass": TEMP_COMPASS,
    "mlvu": MLVU,
}
