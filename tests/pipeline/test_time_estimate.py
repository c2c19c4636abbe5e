"""The time of a build follows from one unit's decoding and encoding, the lanes and the decoders beside them."""

from __future__ import annotations

import pytest

from pipeline.time_estimate import LaneCount, estimate_time, lanes_of_one_host


def gpu(lanes, most_decoders=16):
    return LaneCount(lanes, most_decoders, is_gpu=True, cpus_per_lane=8)


def test_an_encoder_that_is_slower_than_its_decoders_decides():
    found = estimate_time(1000, decode_s=3.0, encode_s=2.0, have=gpu(4), decoders_per_lane=None)
    assert (found.bound_by, found.decoders_per_lane) == ("encode", 2)
    assert (found.wall_s, found.device_s, found.device_busy) == (500.0, 2000.0, 1.0)


def test_too_few_decoders_decide_and_the_devices_wait():
    found = estimate_time(100, decode_s=8.0, encode_s=1.0, have=gpu(1), decoders_per_lane=2)
    assert (found.bound_by, found.wall_s, found.device_busy) == ("decode", 400.0, 0.25)
    found = estimate_time(100, decode_s=8.0, encode_s=1.0, have=gpu(1, most_decoders=4), decoders_per_lane=None)
    assert (found.decoders_per_lane, found.wall_s) == (4, 200.0)


def test_a_lane_without_a_unit_does_not_help():
    found = estimate_time(3, decode_s=0.0, encode_s=1.0, have=gpu(2), decoders_per_lane=None)
    assert (found.wall_s, found.device_s, found.device_busy) == (2.0, 4.0, 0.75)


def test_on_the_cpu_decoders_take_from_the_encoder():
    have = LaneCount(1, 1, is_gpu=False, cpus_per_lane=2)
    found = estimate_time(10, decode_s=1.0, encode_s=1.0, have=have, decoders_per_lane=None)
    assert (found.wall_s, found.bound_by) == (15.0, "encode")


def test_nothing_to_do_takes_no_time():
    found = estimate_time(0, decode_s=1.0, encode_s=1.0, have=gpu(1), decoders_per_lane=None)
    assert (found.wall_s, found.device_s, found.device_busy) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"gpus": 8, "cpus": 96}, (8, 11, True)),
        ({"gpus": 8, "cpus": 16}, (8, 4, True)),
        ({"gpus": 1, "cpus": 64}, (1, 16, True)),
        ({"gpus": 0, "cpus": 2}, (1, 1, False)),
        ({"gpus": 0, "cpus": 8, "lanes": 2, "decoders_per_lane": 5}, (2, 5, False)),
    ],
)
def test_one_host_gives_a_lane_for_each_gpu(asked, expected):
    have = lanes_of_one_host(**{"lanes": None, "decoders_per_lane": None, **asked})
    assert (have.lanes, have.most_decoders, have.is_gpu) == expected
