"""From a source's name on the command line to the source."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import SourceError
from pipeline.sources.benchmark import Benchmark
from pipeline.sources.benchmarks import BENCHMARKS
from pipeline.sources.lerobot import LeRobot
from pipeline.sources.media_path import MediaPath, UrlPath
from pipeline.sources.samples import Source
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.vla_episodes import VLAEpisodes

VIDEO_SOURCES = ("folder", *BENCHMARKS)
STEP_SOURCES = ("vla", "lerobot")


def open_source(
    kind: str,
    data: MediaPath,
    *,
    annotations: MediaPath | None = None,
    dataset: str | None = None,
    instruction: str | None = None,
    views: Sequence[str] | None = None,
    vlm_reuse_count: int = 3,
    action_expert_hz: float = 10,
    horizon: int = 8,
) -> Source:
    """Return the source of one kind (of `VIDEO_SOURCES` or `STEP_SOURCES`) over the folder `data`.

    Options that the kind does not know are not looked at.

    Raises:
        SourceError: the input cannot be enumerated; the message names what and what to change.
    """
    if kind == "folder":
        return VideoFolder(data, dataset=dataset)
    if kind in BENCHMARKS:
        return Benchmark(BENCHMARKS[kind], data, annotations, dataset=dataset)
    if kind == "lerobot":
        return LeRobot(data, dataset=dataset, views=views, instruction=instruction, vlm_reuse_count=vlm_reuse_count)
    if kind != "vla":
        raise SourceError(f"no source {kind!r}; there are {', '.join(VIDEO_SOURCES + STEP_SOURCES)}")
    if isinstance(data, UrlPath):
        raise SourceError(f"VLA episodes are read from a folder, not from {data}; copy or mount them")
    return VLAEpisodes(
        data,
        instruction=instruction,
        views=views,
        vlm_reuse_count=vlm_reuse_count,
        action_expert_hz=action_expert_hz,
        horizon=horizon,
    )
