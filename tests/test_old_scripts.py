"""The old scripts' writers and readers, restated with nothing of ours: they read our files, and we theirs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cache_store import FeatureStore, StepKey, VideoKey, VLACacheManager, model_signature
from consumers.evaluation import CachedVisionTower
from consumers.training import FeatureDataset, UnifiedVLADataset
from tests.consumers.training.episodes import write_new

TOWER, LAYER, NFRAME = "openai/clip-vit-large-patch14-336", -2, 8
VIDEO_FIELDS = {
    "vision_features": torch.Tensor,
    "video_id": str,
    "video_path": str,
    "nframe": int,
    "dataset": str,
    "model_signature": str,
    "dtype": str,
    "shape": list,
}


class OldVideoCache:
    """LongVA's cache: one dict of eight fields for each video, under an MD5 that names the data set, too."""

    def __init__(self, root: Path, *, tower: str = TOWER, layer: int = LAYER) -> None:
        self.root = root
        self.signature = hashlib.md5(f"{tower}:layer{layer}".encode()).hexdigest()[:8]

    def path(self, dataset: str, video_id: str, nframe: int) -> Path:
        name = hashlib.md5(f"{dataset}:{video_id}:nframe{nframe}:model{self.signature}".encode()).hexdigest()
        return self.root / dataset / f"{name}.pt"

    def write(self, dataset: str, video_path: str, nframe: int, features: torch.Tensor) -> None:
        path = self.path(dataset, Path(video_path).stem, nframe)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = features.to(torch.float16)
        content = {"vision_features": half, "video_id": Path(video_path).stem, "video_path": video_path}
        content |= {"nframe": nframe, "dataset": dataset, "model_signature": self.signature}
        torch.save(content | {"dtype": "float16", "shape": list(half.shape)}, path)

    def read(self, dataset: str, video_path: str, nframe: int) -> torch.Tensor | None:
        path = self.path(dataset, Path(video_path).stem, nframe)
        if not path.exists():
            return None
        return torch.load(path, map_location="cpu")["vision_features"].to("cpu", dtype=torch.float16)


class OldStepCache:
    """The robot scripts' cache: one object a step, named by episode and index, flat or below the prompt's hash."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, episode: str, vlm_idx: int, instruction: str | None = None) -> Path:
        folder = self.root if instruction is None else self.root / hashlib.sha256(instruction.encode()).hexdigest()[:8]
        return folder / f"{episode}_vlm{vlm_idx}.pt"

    def write(self, episode: str, vlm_idx: int, value: object, instruction: str | None = None) -> None:
        path = self.path(episode, vlm_idx, instruction)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, path.with_suffix(".pt.tmp"))
        os.replace(path.with_suffix(".pt.tmp"), path)

    def read(self, episode: str, vlm_idx: int, instruction: str | None = None) -> object:
        path = self.path(episode, vlm_idx, instruction)
        return torch.load(path, map_location="cpu") if path.exists() else None


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def fields_of(old: OldVideoCache, video_id: str, value: torch.Tensor) -> dict[str, object]:
    content = {"vision_features": value, "video_id": video_id, "video_path": f"video/{video_id}.mp4", "nframe": NFRAME}
    content |= {"dataset": "Video-MME", "model_signature": old.signature, "dtype": "float16"}
    return content | {"shape": list(value.shape)}


@pytest.mark.parametrize("frames", [NFRAME, 3], ids=["long", "short"])
def test_longvas_reader_finds_our_videos_with_all_eight_fields(tmp_path, frames):
    old, value = OldVideoCache(tmp_path), features(1, frames, 4, 16)
    assert model_signature(TOWER, LAYER) == old.signature
    with FeatureStore(tmp_path) as store:
        store.put(
            VideoKey("Video-MME", "fFjv93ACGo8", NFRAME, old.signature), fields_of(old, "fFjv93ACGo8", value), recipe={}
        )
    assert torch.equal(old.read("Video-MME", "/data/video/fFjv93ACGo8.mp4", NFRAME), value)
    loaded = torch.load(old.path("Video-MME", "fFjv93ACGo8", NFRAME), map_location="cpu")
    assert {name: type(field) for name, field in loaded.items()} == VIDEO_FIELDS
    assert (loaded["shape"], loaded["dtype"]) == ([frames, 4, 16], "float16")
    assert old.read("Video-MME", "/data/video/other.mp4", NFRAME) is None


def test_longvas_summary_is_beside_our_videos(tmp_path):
    old = OldVideoCache(tmp_path)
    with FeatureStore(tmp_path) as store:
        for video_id in "ab":
            store.put(
                VideoKey("Video-MME", video_id, NFRAME, old.signature),
                fields_of(old, video_id, features(1, NFRAME, 4, 16)),
            )
    with FeatureStore(tmp_path) as store:
        store.stats()
    summary = json.loads((tmp_path / "cache_meta.json").read_text())
    bytes_on_disk = sum(path.stat().st_size for path in (tmp_path / "Video-MME").iterdir())
    assert summary["datasets"] == {"Video-MME": {"count": 2, "size_bytes": bytes_on_disk}}
    assert (summary["total_samples"], summary["total_size_bytes"], summary["version"]) == (2, bytes_on_disk, "1.0")


@pytest.mark.parametrize("written_as", ["Video-MME", "Video-MME_128frame", "Video-MME_8frame_subs"])
@pytest.mark.parametrize("asked_as", ["Video-MME", "Video-MME_128frame"])
def test_we_find_longvas_videos_under_whatever_name_a_harness_gave(tmp_path, written_as, asked_as):
    old, value = OldVideoCache(tmp_path), features(2, NFRAME, 4, 16)
    old.write(written_as, "/data/video/fFjv93ACGo8.mp4", NFRAME, value)
    with FeatureStore(tmp_path) as store:
        found = store.get(VideoKey(asked_as, "fFjv93ACGo8", NFRAME, old.signature))
        assert store.get(VideoKey(asked_as, "fFjv93ACGo8", NFRAME * 2, old.signature)) is None
        assert store.get(VideoKey(asked_as, "fFjv93ACGo8", NFRAME, "0" * 8)) is None
        assert store.verify().problems == []
    assert {name: type(field) for name, field in found.items()} == VIDEO_FIELDS
    assert torch.equal(found["vision_features"], value)


@pytest.mark.parametrize("instruction", [None, "Perform peg insertion task."], ids=["flat", "prompt-hash"])
def test_the_robot_scripts_read_our_steps_and_we_theirs(tmp_path, instruction):
    old, name = OldStepCache(tmp_path), "recv_all_20251027_170308"
    prompt_hash = None if instruction is None else hashlib.sha256(instruction.encode()).hexdigest()[:8]
    manager = VLACacheManager(tmp_path)
    manager.save_cache(name, 30, features(3, 1, 1, 2048).float(), prompt_hash=prompt_hash)
    assert torch.equal(old.read(name, 30, instruction), features(3, 1, 1, 2048))
    assert old.read(name, 60, instruction) is None
    old.write(name, 60, features(4, 1, 1, 2048), instruction)
    assert torch.equal(manager.load_cache(name, 60, prompt_hash=prompt_hash), features(4, 1, 1, 2048))
    key = StepKey(name, 60, prompt_hash)
    assert torch.equal(FeatureDataset(tmp_path, [key])[0], features(4, 1, 1, 2048))
    assert manager.store.verify().problems == []


def test_tuples_of_image_features_and_guidance_go_both_ways(tmp_path):
    old, manager = OldStepCache(tmp_path), VLACacheManager(tmp_path)
    given = (features(5, 1, 6, 16), features(6, 1, 16))
    manager.save_cache("episode_1", 0, given)
    old.write("episode_1", 30, given)
    for value in (old.read("episode_1", 0), manager.load_cache("episode_1", 30)):
        assert isinstance(value, tuple)
        assert all(torch.equal(one, other) for one, other in zip(value, given, strict=True))


def test_training_hits_what_the_robot_scripts_wrote(tmp_path):
    write_new(tmp_path / "episode_1")
    old = OldStepCache(tmp_path / "cache")
    for step in range(0, 210, 30):
        old.write("episode_1", step, features(step, 1, 1, 16))
    found = UnifiedVLADataset(tmp_path / "episode_1", cache_root=tmp_path / "cache", on_miss="raise")
    assert repr(found).endswith("VL Cache: 7/7")
    for sample in found:
        assert torch.equal(sample["vl_cache"], features(sample["vlm_idx"], 1, 1, 16))


class OldTower(torch.nn.Module):
    """As LongVA's own code has it: images in, features in their dtype out."""

    select_layer, select_feature = LAYER, "patch"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed, although the cache has it")


class OldModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(mm_vision_tower=TOWER, mm_vision_select_layer=LAYER)
        self.vision_tower = OldTower()

    def get_vision_tower(self) -> torch.nn.Module:
        return self.vision_tower


@pytest.mark.parametrize("frames", [NFRAME, 3], ids=["long", "short"])
def test_a_longva_answers_from_what_its_script_wrote_under_the_harness_name(tmp_path, frames):
    value = features(7, frames, 4, 16)
    OldVideoCache(tmp_path).write("Video-MME_128frame", "/data/video/fFjv93ACGo8.mp4", NFRAME, value)
    model = OldModel()
    cache = CachedVisionTower(model, tmp_path, dataset="Video-MME", nframe=NFRAME, on_miss="raise")
    with cache.request("fFjv93ACGo8") as request:
        pixels = request.pixels(lambda: pytest.fail("decoded, although the cache has it"))
        answer = model.get_vision_tower()(pixels)
    assert torch.equal(answer, value)  # [frames, tokens, width], without the dimension that the script added
    assert (cache.statistics.hits, cache.statistics.misses) == (1, 0)
