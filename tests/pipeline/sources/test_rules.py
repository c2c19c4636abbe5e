"""The rules that writer and reader share, and the reader of other people's pickles."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MediaError
from pipeline.sources.safe_pickle import load_plain_pickle
from pipeline.sources.video_ids import video_id
from pipeline.sources.vlm_index import (
    action_interval,
    each_once,
    new_format_samples,
    new_format_vlm_idx,
    old_format_samples,
    old_format_vlm_idx,
)


def test_169_samples_have_57_steps():
    steps = list(each_once(new_format_vlm_idx(i, vlm_reuse_count=3, interval=10) for i in range(169)))
    assert len(steps) == 57
    assert steps[:3] == [0, 30, 60]


def test_new_format_counts():
    interval = action_interval(robot_hz=100, action_expert_hz=10)
    assert interval == 10
    assert new_format_samples(1700, interval=interval) == 169
    assert new_format_samples(9, interval=interval) == 0


@given(st.integers(1, 500), st.integers(1, 9), st.integers(0, 20))
def test_old_format_indices_ascend_and_stay_inside_the_episode(num_rows, reuse, horizon):
    count = old_format_samples(num_rows, horizon=horizon)
    steps = [old_format_vlm_idx(i, vlm_reuse_count=reuse, num_rows=num_rows) for i in range(count)]
    assert steps == sorted(steps)
    assert all(0 <= step < num_rows for step in steps)
    assert list(each_once(iter(steps))) == sorted(set(steps))


@pytest.mark.parametrize(
    ("path", "start_s", "end_s", "expected"),
    [
        ("video/abc.mp4", None, None, "abc"),
        ("a.b.mp4", None, None, "a.b"),
        ("x.mp4", 1.5, 10.0, "x@1.5-10"),
        ("x.mp4", 0.0, None, "x@0-"),
        ("x.mp4", 0.1 + 0.2, 1e-7, "x@0.30000000000000004-1e-07"),
    ],
)
def test_video_ids(path, start_s, end_s, expected):
    assert video_id(path, start_s=start_s, end_s=end_s) == expected


EPISODE = {
    "action": np.arange(14.0).reshape(2, 7),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "image": {"left": ["a.jpg", "b.jpg"]},
    "instruction": "lift",
    "sensor_data": None,
    "scalar": np.float32(1.5),
    "more": OrderedDict(a=(1, 2.0, True)),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value)
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(EPISODE, protocol=protocol))
    assert_same(load_plain_pickle(tmp_path / "data.pkl"), EPISODE)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_files_of_joblib(tmp_path, compress):
    joblib.dump(EPISODE, tmp_path / "data.pkl", compress=compress)
    assert_same(load_plain_pickle(tmp_path / "data.pkl"), EPISODE)


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["top", "inside", "object array"])
def test_nothing_is_ever_run(tmp_path, protocol, place):
    bait = tmp_path / "it ran"
    for call, arguments in [
        (os.system, (f"touch '{bait}'",)),
        (eval, (f"open({str(bait)!r}, 'w')",)),
        (os.mkdir, (str(bait),)),
        (np.lib.npyio.NpzFile, (str(bait),)),
    ]:
        hostile = Hostile(call, *arguments)
        whole = {"top": hostile, "inside": {"action": [hostile]}, "object array": np.array([hostile, 1], dtype=object)}
        (tmp_path / "data.pkl").write_bytes(pickle.dumps(whole[place], protocol=protocol))
        with pytest.raises(MediaError):
            load_plain_pickle(tmp_path / "data.pkl")
        assert not bait.exists()


@pytest.mark.parametrize("write", [pickle.dump, joblib.dump])
def test_arrays_of_objects_are_refused_even_if_the_objects_are_plain(tmp_path, write):
    with (tmp_path / "data.pkl").open("wb") as file:
        write({"action": np.array([{"x": 1}, "y"], dtype=object)}, file)
    with pytest.raises(MediaError, match=r"objects|names joblib"):
        load_plain_pickle(tmp_path / "data.pkl")


@given(st.binary(max_size=200))
def test_noise_is_an_error_and_never_a_crash(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "data.pkl"
    path.write_bytes(b"\x80\x04" + noise)
    with contextlib.suppress(MediaError):
        load_plain_pickle(path)
