"""Many episodes in one loader: what is found, weighed, cut among processes and refused."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from cache_store import FeatureStore, RecipeMismatch, prompt_hash
from consumers.training import VLAEpisodeSet, create_unified_dataloader, unified_collate_fn
from consumers.training.coverage import coverage_of
from consumers.training.open_episodes import MOST_OPEN, OF_THIS_PROCESS
from consumers.training.vla_dataset import UnifiedVLADataset
from pipeline.errors import MediaError, SourceError
from pipeline.recipe import with_instruction
from tests.consumers.training.episodes import RECIPE, feature_of, fill, write_new, write_old

NEW = {"episode_1": 20, "episode_2": 8, "data_collection_3": 3}  # samples
OLD = {"recv_all_1": 12, "recv_all_2": 2}


@pytest.fixture
def data(tmp_path):
    for seed, (name, samples) in enumerate(NEW.items()):
        task = "red" if name == "data_collection_3" else "blue"
        write_new(tmp_path / "new" / task / name, poses=(samples + 1) * 10, sensor=None, seed=seed)
    for name, samples in OLD.items():
        write_old(tmp_path / "old" / name, rows=samples + 8)
    (tmp_path / "old" / "notes.txt").touch()
    for name, samples in NEW.items():
        fill(tmp_path / "cache", name, range(0, samples * 10, 30))
    fill(tmp_path / "cache", "recv_all_1", range(0, 12, 3))
    return tmp_path


def make(data, **options):
    options = {"num_workers": 0, "cache_root": data / "cache", **options}
    return create_unified_dataloader([str(data / "old" / "*")], [data / "new"], **options)


def names(batches):
    return [key.rpartition("_vlm")[0] for batch in batches for key in batch["cache_keys"]]


def test_every_sample_of_every_episode_comes_once_an_epoch_with_its_own_feature(data, capsys):
    loader = make(data)
    assert capsys.readouterr().out == "5 episodes, 45 samples, VL Cache: 15/16\n"
    for _ in range(2):
        batches = list(loader)
        assert Counter(names(batches)) == NEW | OLD
        for batch in batches:
            for key, step, feature in zip(batch["cache_keys"], batch["vlm_indices"], batch["vl_cache"], strict=True):
                episode = key.rpartition("_vlm")[0]
                assert (feature is None) == (episode == "recv_all_2")
                if feature is not None:
                    assert torch.equal(feature, feature_of(episode, step))


def test_tasks_episodes_and_patterns_are_found_alike(data):
    roots = [[data / "new"], [data / "new" / "blue", data / "new" / "red"], [data / "new" / "*"], [data / "new/*/*_*"]]
    for paths in roots:
        loader = create_unified_dataloader(None, paths, num_workers=0, use_cache=False, shuffle=False)
        assert list(dict.fromkeys(names(loader))) == ["episode_1", "episode_2", "data_collection_3"]


def test_weights_are_of_the_longest_path(data):
    weights = [f"{data}/new/blue/episode_2:2.5", f"{data}/new/*:3", f"{data}/new/blue:0", f"{data}/old/*:0.5"]
    loader = make(data, dataset_weights=weights)
    (episodes,) = {id(loader.dataset): loader.dataset}.values()
    weight_of = dict(zip((e.data_dir.name for e in episodes.episodes), episode_weights(loader), strict=True))
    assert weight_of == {
        "recv_all_1": 0.5,
        "recv_all_2": 0.5,
        "episode_1": 0.0,
        "episode_2": 2.5,
        "data_collection_3": 3.0,
    }
    assert "episode_1" not in names(loader)


def episode_weights(loader):
    """Read back from the sampler's cumulated weights: those of each episode's first sample."""
    limits = [0.0, *loader.sampler._limits.tolist()]
    starts = [0, *loader.dataset._ends.tolist()[:-1]]
    return [limits[start + 1] - limits[start] for start in starts]


def test_processes_share_an_epoch_in_equal_parts(data):
    parts = [make(data, distributed=True, rank=rank, world_size=2, seed=5) for rank in range(2)]
    assert [len(list(part.sampler)) for part in parts] == [23, 23]
    for part in parts:
        part.sampler.set_epoch(4)
    shared = [index for part in parts for index in part.sampler]
    assert set(shared) == set(range(45))
    plain = DistributedSampler(parts[0].dataset, 2, 0, shuffle=False)
    assert [parts[0].dataset[index]["vlm_idx"] for index in plain][:3] == [0, 0, 3]


def test_a_worker_that_is_killed_ends_the_epoch_with_an_error_and_hurts_no_store(data):
    batches = iter(make(data, batch_size=1, num_workers=2))
    # At once: the epoch is short, and who has read its share already is not missed.
    os.kill(batches._workers[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        list(batches)
    with FeatureStore(data / "cache") as store:
        assert store.verify().problems == []
    assert Counter(names(make(data))) == NEW | OLD


def test_a_loader_goes_on_in_the_middle_of_an_epoch(data):
    expected = [batch["cache_keys"] for batch in make(data, batch_size=4)]
    first, batches = make(data, batch_size=4), []
    for batch in first:
        batches.append(batch["cache_keys"])
        if len(batches) == 3:
            break
    second = make(data, batch_size=4)
    second.sampler.load_state_dict(first.sampler.state_at(3 * 4))
    assert batches + [batch["cache_keys"] for batch in second] == expected


def test_a_state_is_refused_by_as_many_samples_of_other_episodes_and_goes_with_moved_ones(data):
    state = make(data).sampler.state_at(4)
    (data / "new").rename(data / "moved")
    moved = create_unified_dataloader([str(data / "old" / "*")], [data / "moved"], num_workers=0, use_cache=False)
    moved.sampler.load_state_dict(state)
    (data / "moved" / "red" / "data_collection_3").rename(data / "moved" / "red" / "data_collection_4")
    other = create_unified_dataloader([str(data / "old" / "*")], [data / "moved"], num_workers=0, use_cache=False)
    assert len(other.dataset) == len(moved.dataset)
    with pytest.raises(ValueError, match="other samples"):
        other.sampler.load_state_dict(state)


def test_two_episodes_of_one_name_are_both_named(data):
    shutil.copytree(data / "new" / "blue" / "episode_1", data / "new" / "red" / "episode_1")
    with pytest.raises(SourceError, match=r"'episode_1'.*blue.*red"):
        make(data)


def test_a_bad_episode_is_named_or_left_out_by_name(data, capsys):
    (data / "old" / "recv_all_1" / "data.pkl").write_bytes(b"\x80\x04junk")
    (data / "new" / "blue" / "episode_2" / "metadata.json").unlink()
    with pytest.raises(SourceError, match=r"(?s)2 episodes.*recv_all_1.*episode_2"):
        make(data)
    with pytest.raises(ValueError, match="on_bad_episode is 'leave'; give 'raise' or 'skip'"):
        make(data, on_bad_episode="leave")
    loader = make(data, on_bad_episode="skip")
    assert "left out: episode" in capsys.readouterr().out
    assert Counter(names(loader)) == {"episode_1": 20, "data_collection_3": 3, "recv_all_2": 2}


def test_folders_that_are_named_as_episodes_and_hold_none_are_named_or_left_out(data, capsys):
    (data / "old" / "recv_all_1" / "data.pkl").unlink()
    for path in ("new/blue/episode_2/metadata.json", "new/red/data_collection_3/metadata.json"):
        (data / path).unlink()
    patterns = [data / "old" / "*"], [data / "new" / "*" / "*"]
    with pytest.raises(SourceError, match=r"(?s)3 episodes.*recv_all_1.*episode_2.*data_collection_3"):
        create_unified_dataloader(*patterns, num_workers=0, use_cache=False)
    loader = create_unified_dataloader(*patterns, num_workers=0, use_cache=False, on_bad_episode="skip")
    assert capsys.readouterr().out.count("left out: episode") == 3
    assert Counter(names(loader)) == {"episode_1": 20, "recv_all_2": 2}


def test_complete_episodes_of_the_other_format_are_left_to_their_own_list(data):
    shutil.move(data / "old" / "recv_all_1", data / "new" / "blue" / "recv_all_1")
    both = [data / "new" / "blue" / "*"]
    assert Counter(names(create_unified_dataloader(both, both, num_workers=0, use_cache=False))) == {
        "episode_1": 20,
        "episode_2": 8,
        "recv_all_1": 12,
    }


def test_a_root_with_an_episode_beside_tasks_is_refused(data):
    shutil.move(data / "new" / "blue" / "episode_2", data / "new" / "episode_2")
    with pytest.raises(SourceError, match=r"episodes \(episode_2\) beside tasks with episodes \(blue\)"):
        make(data)


def test_the_weight_of_an_episode_that_is_left_out_counts_for_none(data):
    (data / "new" / "blue" / "episode_2" / "metadata.json").write_text("{")
    options = {"dataset_weights": [f"{data}/new/blue/episode_2:2", f"{data}/old:0.5"], "on_bad_episode": "skip"}
    assert sorted(episode_weights(make(data, **options))) == [0.5, 0.5, 1.0, 1.0]


def test_an_episode_whose_name_no_feature_can_have_is_named_or_left_out(data):
    (data / "new" / "blue" / "episode_2").rename(data / "new" / "blue" / "episode_2@home")
    with pytest.raises(SourceError, match=r"(?s)1 episodes.*episode_2@home"):
        make(data)
    assert "episode_2@home" not in names(make(data, on_bad_episode="skip"))
    assert "episode_2@home" in names(make(data, use_cache=False))


def test_a_folder_of_both_formats_is_refused_by_whoever_would_guess(data):
    folder = data / "old" / "recv_all_1"
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(MediaError, match=r"recv_all_1 has both data\.pkl .* and metadata\.json"):
        UnifiedVLADataset(folder, use_cache=False)
    with pytest.raises(SourceError, match=r"recv_all_1 has both data\.pkl .* and metadata\.json"):
        make(data)
    assert UnifiedVLADataset(folder, format="old", use_cache=False).num_samples == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"old_dataset_patterns": ["{}/nowhere/*"]}, "nowhere"),
        ({"old_dataset_patterns": ["{}/new/blue"]}, "data.pkl"),
        ({"new_dataset_paths": ["{}/old"]}, "no folder with metadata.json"),
        ({"new_dataset_paths": ["{}/new"], "dataset_weights": ["{}/old:2"]}, "no episode"),
        ({"new_dataset_paths": ["{}/new"], "dataset_weights": ["{}/new"]}, "path:number"),
        ({}, "no samples"),
    ],
)
def test_what_leads_nowhere_is_refused(data, options, said):
    filled = {name: [path.format(data) for path in paths] for name, paths in options.items()}
    with pytest.raises((SourceError, ValueError), match=said):
        create_unified_dataloader(**filled)


def test_a_filter_that_leaves_nothing_says_that_nothing_is_cached(data):
    with pytest.raises(SourceError, match="5 episodes, 0 samples, VL Cache: 0/16"):
        make(data, cache_root=data / "empty", filter_by_cache=True)


def _tell_opened(data, rank, said):
    dist.init_process_group("gloo", init_method=f"file://{data}/meeting", rank=rank, world_size=2)
    try:
        for roots in (["cache", "cache"], ["cache", "later"], ["empty", "cache"]):
            try:
                options = {"cache_root": data / roots[rank], "filter_by_cache": True}
                loader = make(data, distributed=True, rank=rank, world_size=2, **options)
                said.put(f"opened {len(loader.dataset)}")
            except SourceError as exc:
                said.put(str(exc))
    finally:
        dist.destroy_process_group()


def test_processes_that_found_other_features_cached_say_so_at_the_opening(data):
    shutil.copytree(data / "cache", data / "later")
    (data / "cache" / "episode_1_vlm30.pt").unlink()
    context = multiprocessing.get_context("spawn")
    said = [context.Queue(), context.Queue()]
    processes = [context.Process(target=_tell_opened, args=(data, rank, said[rank]), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    told = [[queue.get(timeout=120) for _ in range(3)] for queue in said]
    for process in processes:
        process.join()
    for equal, other, without in told:
        assert equal == "opened 40"
        assert "rank 0: 40 samples, rank 1: 43 samples" in other
        assert "rank 0: 0 samples, rank 1: 40 samples" in without


def _own_options(data, rank):
    """For each case the options of a process; rank 0 has the better ones."""
    here = data if rank == 0 else data / "other"
    roots = {"old_dataset_patterns": None, "new_dataset_paths": [here / "new"], "cache_root": data / "cache"}
    torn = {**roots, "new_dataset_paths": [(data if rank == 0 else data / "torn") / "new"]}
    return {
        "equal": roots,
        "left out": {**torn, "on_bad_episode": "skip"},
        "unreadable": torn,
        "nowhere": {**roots, "new_dataset_paths": [data / ("new", "nowhere")[rank]]},
        "model": {**roots, "cache_root": data / ("small", "large")[rank]},
        "used": {**roots, "cache_root": data / ("small", "large")[rank], "on_stale": "use"},
        "without": {**roots, "cache_root": data / ("small", "nothing")[rank]},
        "rank": {**roots, "rank": 0},
        "shared": {**roots, "rank": 0, "world_size": 1},
        "seed": {**roots, "seed": rank},
        "batches": {**roots, "batch_size": 4 - rank},
    }


def _tell_each(data, rank, said):
    dist.init_process_group("gloo", init_method=f"file://{data}/meeting", rank=rank, world_size=2)
    try:
        for case, options in _own_options(data, rank).items():
            try:
                options = {"distributed": True, "rank": rank, "world_size": 2, "num_workers": 0, **options}
                create_unified_dataloader(**options)
                said.put((case, "opened"))
            except SourceError as exc:
                said.put((case, str(exc)))
    finally:
        dist.destroy_process_group()


def test_processes_whose_data_make_no_one_training_are_all_told_at_the_opening(data):
    for other in ("other", "torn"):
        shutil.copytree(data / "new", data / other / "new")
    (data / "torn" / "new" / "blue" / "episode_2" / "metadata.json").write_text("{")
    for model in ("small", "large"):
        recipe = with_instruction({**RECIPE, "encoder": {"model": model}}, "Perform blue insertion task.")
        fill(data / model, "episode_2", [0], recipe=recipe)
    context = multiprocessing.get_context("spawn")
    said = [context.Queue(), context.Queue()]
    processes = [context.Process(target=_tell_each, args=(data, rank, said[rank]), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    told = [dict(queue.get(timeout=120) for _ in _own_options(data, 0)) for queue in said]
    for process in processes:
        process.join()
    for one in told:
        assert {case for case, words in one.items() if words == "opened"} == {"equal", "used", "without", "shared"}
        assert "rank 0: 31 samples, rank 1: 23 samples (1 episodes left out); samples: " in one["left out"]
        assert "episode_2" in one["unreadable"]
        assert "nowhere" in one["nowhere"]
        assert "features of different recipes, first of episode 1" in one["model"]
        assert "process 0: rank 0 of 2, process 1: rank 0 of 2" in one["rank"]
        assert "seed: 0, 1)" in one["seed"]
        assert "batch_size: 4, 3)" in one["batches"]
    assert told[0]["unreadable"].startswith("other processes of this training cannot open their data\nprocess 1: ")


@pytest.mark.parametrize(("rank", "world_size"), [(1, 2), (0, 2), (1, 1)])
def test_a_place_among_processes_without_distributed_is_refused(data, rank, world_size):
    with pytest.raises(ValueError, match=f"rank is {rank} and world_size is {world_size} without distributed=True"):
        make(data, rank=rank, world_size=world_size)
    assert len(make(data, rank=0, world_size=1).sampler) == 45


@pytest.mark.parametrize(
    "options", [{"old_dataset_patterns": "{}/old/*"}, {"new_dataset_paths": "{}/new"}, {"dataset_weights": "{}/new:2"}]
)
def test_a_bare_string_is_refused_where_a_list_is_expected(data, options):
    filled = {"new_dataset_paths": [data / "new"], **{name: text.format(data) for name, text in options.items()}}
    with pytest.raises(TypeError, match=f"{next(iter(options))} is .*give a list"):
        create_unified_dataloader(**filled, num_workers=0, use_cache=False)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_that_is_no_whole_number_from_0_on_is_refused_at_the_opening(data, seed):
    with pytest.raises(ValueError, match="seed"):
        make(data, seed=seed)


def test_an_unknown_option_is_refused(data):
    with pytest.raises(TypeError, match="horizont"):
        make(data, horizont=3)


def test_preflight_of_a_set_names_episodes_of_another_model(data):
    for name in ("episode_1", "episode_2", "recv_all_1"):
        instruction = "Insert it." if name == "recv_all_1" else "Perform blue insertion task."
        model = {"model": "large" if name == "episode_2" else "small"}
        steps = range(0, 12, 3) if name == "recv_all_1" else range(0, NEW[name] * 10, 30)
        recipe = with_instruction({**RECIPE, "encoder": model}, instruction)
        fill(data / "cache", name, steps, recipe=recipe)
    report = make(data).dataset.preflight()
    assert [problem.name for problem in report.missing] == ["recv_all_2_vlm0"]
    assert [problem.name for problem in report.mismatched] == [f"episode_2_vlm{n}" for n in (0, 30, 60)]
    assert make(data, on_stale="use").dataset.preflight().mismatched == ()


def test_large_sets_ask_the_store_in_one_listing_with_the_same_answers(data, monkeypatch):
    one_by_one = {e.data_dir: e.vl_cache_files for e in make(data).dataset.episodes}
    monkeypatch.setattr("cache_store.lookup.Lookup._list_above", 0)
    assert {e.data_dir: e.vl_cache_files for e in make(data).dataset.episodes} == one_by_one


def test_a_batch_reads_each_feature_once_and_few_episodes_stay_open(data):
    loader = make(data, batch_size=45, shuffle=False)
    (batch,) = loader
    assert len(batch["cache_keys"]) == 45
    loader.dataset.episodes[0].reader._store.close()
    with FeatureStore(data / "cache") as store:
        assert store.stats().hits == 15
    assert len(OF_THIS_PROCESS._open) <= MOST_OPEN


def test_indices_count_from_the_end_too_and_end(data):
    episodes = make(data).dataset
    assert episodes[-1]["cache_key"] == episodes[44]["cache_key"] == "data_collection_3_vlm0"
    for beyond in (45, -46):
        with pytest.raises(IndexError):
            episodes[beyond]


def test_episodes_of_two_caches_are_no_set(data):
    with pytest.raises(ValueError, match="one cache"):
        VLAEpisodeSet(
            UnifiedVLADataset(data / "old" / name, cache_root=data / name) for name in ("recv_all_1", "recv_all_2")
        )


def test_episodes_that_answer_another_recipe_in_two_ways_are_no_set(data):
    folders = [data / "old" / "recv_all_1", data / "new" / "blue" / "episode_1"]
    one, other = (
        UnifiedVLADataset(folder, cache_root=data / "cache", on_stale=means)
        for folder, means in zip(folders, ("use", "error"), strict=True)
    )
    with pytest.raises(ValueError, match="one on_stale; found error, use"):
        VLAEpisodeSet([one, other])
    without_cache = UnifiedVLADataset(folders[0], cache_root=data / "cache", on_stale="use", use_cache=False)
    mixed = VLAEpisodeSet([without_cache, other])
    fill(data / "cache", "episode_1", [0, 30], recipe=RECIPE)
    mixed.episodes[1].covered_by(coverage_of(data / "cache", [other.steps])[0])
    with pytest.raises(RecipeMismatch):
        mixed[len(without_cache)]
    assert mixed[0]["vl_cache"] is None


def test_an_episode_that_another_set_opens_anew_keeps_its_samples(data):
    folder = data / "new" / "blue" / "episode_1"
    (data / "cache" / "episode_1_vlm0.pt").unlink()
    shared = UnifiedVLADataset(folder, cache_root=data / "cache", filter_by_cache=True)
    first = VLAEpisodeSet([shared])
    keys = [first[index]["cache_key"] for index in range(len(first))]
    fill(data / "cache", "episode_1", [0])
    assert len(VLAEpisodeSet([shared])) == len(first) + 3
    assert [first[index]["cache_key"] for index in range(len(first))] == keys
    assert len(shared) == len(first)


def test_one_episode_under_two_instructions_keeps_both_apart(data):
    folder, told = data / "new" / "blue" / "episode_1", ("Do it.", "Perform blue insertion task.")
    fill(data / "cache", "episode_1", range(0, 200, 30), recipe=with_instruction(RECIPE, told[1]))
    for order in ((0, 1), (1, 0)):
        episodes = VLAEpisodeSet(UnifiedVLADataset(folder, cache_root=data / "cache", instruction=one) for one in told)
        with pytest.raises(RecipeMismatch):
            episodes.__getitems__([20 * number for number in order])
    hashes = ("0" * 8, "1" * 8)
    fill(data / "nested", "episode_1", [30], prompt_hash=hashes[0])
    nested = VLAEpisodeSet(
        UnifiedVLADataset(folder, cache_root=data / "nested", prompt_hash_override=one) for one in hashes
    )
    assert [episode.cache_found_count for episode in nested.episodes] == [1, 0]
    fill(data / "nested", "episode_1", [60], prompt_hash=prompt_hash("Do it."))
    hashed = VLAEpisodeSet(UnifiedVLADataset(folder, cache_root=data / "nested", instruction=one) for one in told)
    assert [episode.cache_found_count for episode in hashed.episodes] == [1, 0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_set_works_in_workers(data, context):
    loader = torch.utils.data.DataLoader(
        make(data).dataset,
        batch_size=9,
        num_workers=2,
        collate_fn=unified_collate_fn,
        multiprocessing_context=context,
    )
    assert Counter(names(loader)) == NEW | OLD
