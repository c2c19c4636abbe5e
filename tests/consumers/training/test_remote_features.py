"""Training on features behind a URL: the samples of a folder, downloaded many at once and ahead of their use."""

from __future__ import annotations

import pickle
import threading
import time

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from cache_store import FeatureStore, RecipeMismatch, StepKey, StoreFormatError, StoreReadError
from consumers.training import (
    CachedLeRobot,
    FeatureDataset,
    FeatureMissing,
    UnifiedVLADataset,
    create_unified_dataloader,
    unified_collate_fn,
)
from consumers.training.sampler import ResumableSampler
from pipeline.recipe import with_instruction
from tests.cache_store.remote.s3_server import s3_bucket
from tests.consumers.training.episodes import RECIPE, feature_of, fill, write_new, write_old

ROWS = 20
OURS = with_instruction(RECIPE, "Insert it.")
NAMES = [f"recv_all_{number}" for number in range(4)]
STEPS = range(0, 12, 3)  # of an episode's twelve samples


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Four episodes; the copies of what is behind URLs lie beside them."""
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    for seed, name in enumerate(NAMES):
        write_old(tmp_path / "old" / name, rows=ROWS, seed=seed)
    return tmp_path


@pytest.fixture
def memory(data):
    return filled(f"memory://{data.name}/cache")


@pytest.fixture
def s3(data, monkeypatch):
    return filled(f"{s3_bucket(monkeypatch)}/vla")


def filled(root):
    for name in NAMES:
        fill(root, name, STEPS, recipe=OURS)
    return root


def make(data, root, **options):
    options = {"num_workers": 0, "on_miss": "raise", "shuffle": False, "batch_size": 4, **options}
    return create_unified_dataloader([data / "old" / "*"], cache_root=root, **options)


def seen(loader):
    return [(key, feature.flatten().tolist()) for batch in loader for key, feature in zip(*shown(batch), strict=True)]


def shown(batch):
    return batch["cache_keys"], batch["vl_cache"]


def store_of(dataset):
    return dataset.episodes[0].reader._store


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_url_gives_what_a_folder_gives_and_is_asked_once(request, data, kind, capsys):
    url = request.getfixturevalue(kind)
    wanted, said = seen(make(data, filled(data / "cache"))), capsys.readouterr().out
    loader = make(data, url)
    assert capsys.readouterr().out == said == "4 episodes, 48 samples, VL Cache: 16/16\n"
    assert loader.dataset.preflight().require().is_complete
    assert seen(loader) == wanted
    store = store_of(loader.dataset)
    while store._tier._underway:
        time.sleep(0.01)  # a copy can be read before the download that made it has looked at the object once more
    transfers = store.transfers
    asked = transfers.requests
    assert transfers.downloads == 16
    assert seen(loader) == wanted
    assert transfers.requests == asked
    files = loader.dataset.episodes[1].vl_cache_files
    assert all(torch.equal(torch.load(files[step]), feature_of(NAMES[1], step)) for step in STEPS)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_it_and_take_no_connection_along(data, s3, context):
    dataset = make(data, s3).dataset
    assert store_of(dataset) is None
    dataset[0]
    assert store_of(dataset) is not None
    options = {"num_workers": 2, "collate_fn": unified_collate_fn, "multiprocessing_context": context}
    found = seen(DataLoader(dataset, batch_size=8, **options))
    steps = [(name, step // 3 * 3) for name in NAMES for step in range(12)]
    assert found == [(f"{name}_vlm{step}", feature_of(name, step).flatten().tolist()) for name, step in steps]
    assert store_of(pickle.loads(pickle.dumps(dataset))) is None


def test_the_downloads_of_a_batch_overlap(data, memory, monkeypatch):
    keys = [StepKey(name, step) for name in NAMES for step in STEPS]
    everybody = threading.Barrier(len(keys))

    def cat_file(self, path, **options):
        everybody.wait(30)  # as long as any of them does not come
        return whole(self, path, **options)

    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert len(FeatureDataset(memory, keys).__getitems__(range(len(keys)))) == len(keys)


def test_what_comes_next_is_downloaded_before_it_is_asked_for(data, memory):
    loader = make(data, memory, batch_size=3)  # a step's three samples
    batches = iter(loader)
    next(batches)
    transfers = store_of(loader.dataset).transfers
    waits_until(lambda: transfers.downloads == 16)
    assert len(list(batches)) == 15
    assert transfers.requests == 16


def waits_until(is_so):
    end_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_a_sampler_tells_each_index_once_and_in_time():
    told = []
    sampler = ResumableSampler(100, seed=3, prefetch=told.extend, prefetch_samples=10)
    order = []
    for position, index in enumerate(sampler):
        order.append(index)
        assert len(told) >= min(100, position + 1 + 5)
        assert len(told) <= position + 10
    assert told == order
    sampler.load_state_dict(sampler.state_at(90, epoch=0))
    told.clear()
    assert list(sampler) == told == order[90:]


@pytest.mark.parametrize("url", ["memory", "folder"])
def test_nothing_is_looked_at_ahead_where_features_lie_in_a_folder(data, memory, url, monkeypatch):
    dataset = FeatureDataset(memory if url == "memory" else filled(data / "cache"), [StepKey(NAMES[0], 0)])
    looked = []
    dataset._reader.prefetch((looked.append(1) or StepKey(NAMES[0], 0), None) for _ in range(1))
    assert bool(looked) == (url == "memory")


def test_misses_mismatches_and_services_that_fail_are_told_apart(data, memory, monkeypatch):
    episode = data / "old" / NAMES[0]
    with FeatureStore(memory) as store:
        store.delete(StepKey(NAMES[0], 3))
        store.put(StepKey(NAMES[0], 6), torch.zeros(1, 1, 3), recipe={"version": 2})
    found = UnifiedVLADataset(episode, cache_root=memory)
    assert repr(found).endswith("VL Cache: 3/4")
    report = found.preflight()
    assert [problem.name for problem in report.missing] == [f"{NAMES[0]}_vlm3"]
    assert [problem.name for problem in report.mismatched] == [f"{NAMES[0]}_vlm6"]
    assert memory in report.missing[0].reason
    assert found[3]["vl_cache"] is None
    with pytest.raises(RecipeMismatch):
        found[6]
    with pytest.raises(FeatureMissing, match="memory://"):
        UnifiedVLADataset(episode, cache_root=memory, on_miss="raise")[3]

    def refuse(self, path, **_):
        raise PermissionError(path)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(StoreReadError):
        found[9]


def test_a_url_that_holds_nothing_is_empty_and_one_that_leads_nowhere_an_error(data, memory, s3):
    assert "VL Cache: 0/16" in repr(make(data, f"{memory}/typo", on_miss="images").dataset)
    with pytest.raises(StoreFormatError, match="no bucket"):
        make(data, "s3://no-such-bucket/vla")


def test_the_instructions_folder_and_the_environment_are_looked_at(data, memory, monkeypatch):
    write_new(data / "blue" / "episode_1", sensor=None)
    monkeypatch.setenv("VLM_CACHE_DIR", memory)
    digest = UnifiedVLADataset(data / "blue" / "episode_1").prompt_hash
    fill(memory, "episode_1", [0, 30], prompt_hash=digest)
    found = UnifiedVLADataset(data / "blue" / "episode_1")
    assert found.cache_found_count == 2
    assert torch.equal(found[3]["vl_cache"], feature_of("episode_1", 30))


def test_lerobot_items_get_theirs_from_a_url(memory):
    items = [{"episode_index": 7, "frame_index": frame} for frame in range(6)]
    fill(memory, "pick_episode_000007", [0, 3], recipe={"version": 1})
    cached = CachedLeRobot(items, memory, dataset_name="pick", recipe={"version": 1})
    values = [item["vl_cache"] for item in cached.__getitems__(range(6))]
    assert all(torch.equal(one, feature_of("pick_episode_000007", at // 3 * 3)) for at, one in enumerate(values))
