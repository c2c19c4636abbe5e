"""From a source's name on the command line to the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.sources.lerobot import LeRobotV2
from pipeline.sources.samples import Source
from pipeline.sources.video_folder import VideoFolder
from pipeline.sources.video_mme import VideoMME
from pipeline.sources.vla_episodes import VLAEpisodes

SourceKind = Literal["folder", "video-mme", "vla", "lerobot"]


def open_source(
    kind: SourceKind,
    data: Path,
    *,
    annotations: Path | None = None,
    dataset: str | None = None,
    instruction: str | None = None,
    views: Sequence[str] | None = None,
    vlm_reuse_count: int = 3,
    action_expert_hz: float = 10,
    horizon: int = 8,
) -> Source:
    """Return the source of one kind over the folder `data`; options that the kind does not know are not looked at.

    Raises:
        SourceError: the input cannot be enumerated; the message names what and what to change.
    """
    if kind == "folder":
        return VideoFolder(data, dataset=dataset)
    if kind == "video-mme":
        return VideoMME(data, annotations, dataset=dataset)
    if kind == "lerobot":
        return LeRobotV2(data, dataset=dataset, views=views, instruction=instruction, vlm_reuse_count=vlm_reuse_count)
    return VLAEpisodes(
        data,
        instruction=instruction,
        views=views,
        vlm_reuse_count=vlm_reuse_count,
        action_expert_hz=action_expert_hz,
        horizon=horizon,
    )
