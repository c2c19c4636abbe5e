"""Small videos in a store that was filled as a build fills it, with the small LongVA's tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_store import FeatureStore, VideoKey, video_value
from pipeline.encoders.longva import longva_spec
from pipeline.recipe import video_recipe
from pipeline.vision import SamplingRule
from pipeline.vision.cuts import Cut
from pipeline.vision.decoding import decode_video
from tests.media import write_video

NFRAME = 8
DATASET = "Video-MME"


def build(root: Path, videos: dict[str, tuple[Path, Cut]], *, dtype: str = "float16", sampling: str = "source") -> None:
    """Fill a store with features of videos by id, by the steps that a build takes, in this process."""
    spec = longva_spec("small", dtype=dtype)
    recipe, tower = video_recipe(spec, nframe=NFRAME, sampling=sampling), spec.load("cpu")
    with FeatureStore(root) as store:
        for video_id, (path, cut) in videos.items():
            rule = SamplingRule.parse(sampling)
            decoded = decode_video(path, sampling=rule, nframe=NFRAME, preprocess=spec.preprocess, cut=cut)
            key = VideoKey(DATASET, video_id, NFRAME, spec.model_signature)
            store.put(key, video_value(key, tower.encode(decoded.pixels), video_path=path.name), recipe=recipe)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for each other make small models a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> dict[str, tuple[Path, Cut]]:
    """A long video, one with fewer frames than asked for, and a clip of the long one."""
    folder = tmp_path_factory.mktemp("videos")
    long = write_video(folder / "long.mp4", frames=24, seed=1)
    short = write_video(folder / "short.mp4", frames=3, seed=2)
    return {"long": (long, Cut()), "short": (short, Cut()), "long@0.5-1.5": (long, Cut(0.5, 1.5))}


@pytest.fixture(scope="session")
def filled(videos, tmp_path_factory) -> Path:
    """A store with the features of all videos in float16. Tests do not write into it."""
    root = tmp_path_factory.mktemp("filled") / "store"
    build(root, videos)
    return root


def message(videos, video_id: str, text: str = "What happens?") -> list[dict[str, object]]:
    """A question about one of the videos."""
    path, cut = videos[video_id]
    item = {"type": "video", "value": str(path), "start": cut.start_s, "end": cut.end_s}
    return [item, {"type": "text", "value": text}]


def pictures(count: int, *, side: int, seed: int = 0) -> torch.Tensor:
    """Return float32 [count, 3, side, side]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, side, side), dtype=np.float32))
