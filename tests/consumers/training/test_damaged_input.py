"""Episodes whose parts do not fit together, and a cache that changes under a training: named, or as declared."""

from __future__ import annotations

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache_store import FeatureStore, PutItem, StepKey
from consumers.training import UnifiedVLADataset, unified_collate_fn
from pipeline.errors import MediaError
from tests.consumers.training.episodes import VIEWS, feature_of, fill, write_new, write_old

STEPS = range(0, 200, 30)


def opened(folder, **options):
    return UnifiedVLADataset(folder, use_cache=False, **options)


def test_views_with_fewer_images_than_rows_repeat_their_own_last_one(tmp_path):
    folder = tmp_path / "recv_all_1"
    images = {view: [f"{view}/{row:04d}.jpg" for row in range(5 if view == VIEWS[1] else 40)] for view in VIEWS}
    write_old(folder, image=images)
    assert opened(folder)[12]["images"] == [
        str(folder / view / f"{4 if view == VIEWS[1] else 12:04d}.jpg") for view in VIEWS
    ]


@pytest.mark.parametrize("rows", [25, 60])
def test_a_recorded_sensor_of_another_length_is_read_by_row_and_padded_with_zeros(tmp_path, rows):
    sensor = np.random.default_rng(0).normal(size=(rows, 1026)).astype(np.float32)
    write_old(tmp_path / "recv_all_1", sensor=sensor)
    window = opened(tmp_path / "recv_all_1", sensor_window_size=30)[20]["sensor_data"].numpy()
    there = min(30, rows - 20)
    assert np.array_equal(window[:there], sensor[20 : 20 + there])
    assert not window[there:].any()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"robot_states": np.zeros((214, 12)), "poses": np.zeros((213, 6))}, r"poses are \[213, 6\] beside 214"),
        ({"robot_states": np.zeros((214, 11))}, r"\[T, 12\]; found \[214, 11\]"),
        ({"states": np.zeros((214, 12))}, "no array 'robot_states'"),
    ],
)
def test_robot_states_that_do_not_fit_are_named(tmp_path, arrays, said):
    write_new(tmp_path / "episode_1", sensor=None)
    np.savez(tmp_path / "episode_1" / "robot_states.npz", **arrays)
    with pytest.raises(MediaError, match=said):
        opened(tmp_path / "episode_1")[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [lines[0].replace("pose_b", "pitch"), *lines[1:]], "pose_b"),
        (lambda lines: [*lines[:9], "0,1,2", *lines[9:]], "robot_states.csv cannot be read"),
        (lambda lines: [*lines[:9], lines[9].replace(",", ",x", 1), *lines[10:]], "could not convert"),
        (lambda lines: [*lines[:9], "x" * 200_000, *lines[10:]], "larger than field limit"),
    ],
    ids=["a column", "a short row", "a word", "a long line"],
)
def test_tables_of_robot_states_that_cannot_be_read_are_named(tmp_path, change, said):
    write_new(tmp_path / "episode_1", sensor=None, states="csv")
    path = tmp_path / "episode_1" / "robot_states.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(MediaError, match=said):
        opened(tmp_path / "episode_1")[0]


@pytest.mark.parametrize("name", ["robot_states.npz", "sensor_data_1762725445.npz"])
def test_archives_that_were_cut_off_are_named(tmp_path, name):
    write_new(tmp_path / "episode_1")
    path = tmp_path / "episode_1" / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MediaError, match=r"episode_1.*cannot be read"):
        opened(tmp_path / "episode_1")[0]


@pytest.mark.parametrize("sensor", ["raw", "compressed"])
def test_a_sensor_that_is_torn_after_the_opening_is_named_with_its_episode(tmp_path, sensor):
    write_new(tmp_path / "episode_1", sensor=sensor)
    found = opened(tmp_path / "episode_1")
    found.data()
    (path,) = (tmp_path / "episode_1").glob("sensor_data*")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MediaError, match=rf"{path} was replaced or written to"):
        found[0]


@pytest.mark.parametrize("field", ["alines", "forces"])
def test_nan_of_a_sensor_reaches_no_sample(tmp_path, field):
    arrays = write_new(tmp_path / "episode_1")
    arrays[field][700] = np.nan
    (path,) = (tmp_path / "episode_1").glob("sensor_data*")
    np.savez(path, timestamps=np.arange(len(arrays["forces"])), alines=arrays["alines"], forces=arrays["forces"])
    found = opened(tmp_path / "episode_1")
    assert torch.isfinite(found[2]["sensor_data"]).all()
    with pytest.raises(MediaError, match="sensor has NaN"):
        found[11]  # around reading 715
    assert not opened(tmp_path / "episode_1", disable_sensor=True)[11]["has_sensor"]


def test_a_raw_sensor_goes_before_prepared_windows_in_one_file(tmp_path):
    arrays = write_new(tmp_path / "episode_1", sensor="prepared")
    prepared = opened(tmp_path / "episode_1")[0]["sensor_data"]
    assert np.array_equal(prepared[:50], arrays["data"][0])
    raw = {"alines": np.ones((1391, 1025), np.float32), "forces": np.ones(1391, np.float32)}
    np.savez(tmp_path / "episode_1" / "sensor_data.npz", data=arrays["data"], **raw)
    assert opened(tmp_path / "episode_1")[0]["sensor_data"].min() == 1


def test_an_episode_that_vanishes_while_it_is_read_is_an_error(tmp_path):
    write_new(tmp_path / "episode_1")
    found = opened(tmp_path / "episode_1")
    shutil.rmtree(tmp_path / "episode_1")
    with pytest.raises(MediaError, match="episode_1"):
        found[0]


def change_the_cache(root, begun, stop):
    """Evict, build again, pack and unpack the features of one episode until told to stop."""
    items = [PutItem(StepKey("episode_1", step), feature_of("episode_1", step)) for step in STEPS]
    with FeatureStore(root) as store:
        while not stop.is_set():
            for item in items[::2]:
                store.delete(item.key)
            begun.set()
            store.put_many(items)
            store.pack()
            for item in items[1::2]:
                store.delete(item.key)
            store.put_many(items)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_that_is_evicted_rebuilt_and_packed_while_training_never_gives_another_steps_feature(tmp_path, workers):
    write_new(tmp_path / "episode_1", sensor=None)
    fill(tmp_path / "cache", "episode_1", STEPS)
    context = multiprocessing.get_context("fork")
    begun, stop = context.Event(), context.Event()
    writer = context.Process(target=change_the_cache, args=(tmp_path / "cache", begun, stop))
    writer.start()
    try:
        assert begun.wait(120)
        data = UnifiedVLADataset(tmp_path / "episode_1", cache_root=tmp_path / "cache")
        loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=unified_collate_fn)
        hits = 0
        for _ in range(4):
            for batch in loader:
                for step, feature, images in zip(batch["vlm_indices"], batch["vl_cache"], batch["images"], strict=True):
                    assert (feature is None) == bool(images)
                    if feature is not None:
                        hits += 1
                        assert torch.equal(feature, feature_of("episode_1", step))
        assert writer.is_alive()
        assert hits
    finally:
        stop.set()
        writer.join(120)
    assert writer.exitcode == 0
    with FeatureStore(tmp_path / "cache") as store:
        assert store.verify().problems == []


def test_a_sensor_in_two_archives_is_refused_by_both_names(tmp_path):
    arrays = write_new(tmp_path / "episode_1")
    (path,) = (tmp_path / "episode_1").glob("sensor_data*")
    half = len(arrays["forces"]) // 2
    np.savez(path, alines=arrays["alines"][:half], forces=arrays["forces"][:half])
    second = path.with_name("sensor_data_1762725455.npz")
    np.savez(second, alines=arrays["alines"][half:], forces=arrays["forces"][half:])
    with pytest.raises(MediaError, match=rf"episode_1: {path.name} and {second.name} each hold the sensor"):
        opened(tmp_path / "episode_1")[0]
    np.savez(second, temperatures=np.zeros(5))
    assert np.array_equal(opened(tmp_path / "episode_1")[0]["sensor_data"][:, :1025], arrays["alines"][:65])


def test_timestamps_of_fewer_readings_than_the_sensor_has_are_named(tmp_path):
    arrays = write_new(tmp_path / "episode_1")
    (path,) = (tmp_path / "episode_1").glob("sensor_data*")
    np.savez(path, timestamps=np.arange(7), alines=arrays["alines"], forces=arrays["forces"])
    with pytest.raises(MediaError, match="1391 alines and 7 timestamps"):
        opened(tmp_path / "episode_1")[0]
