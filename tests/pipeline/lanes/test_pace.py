"""A lane's pace is that of its last seconds, whatever the length of a unit, and silence is seen."""

from __future__ import annotations

import pytest

from pipeline.lanes.pace import LanePace, Pace


def noted(*marks):
    pace = Pace()
    for now_s, total in marks:
        pace.note(now_s, total)
    return pace


def test_before_the_first_change_there_is_no_pace():
    assert Pace().rate(5.0) == 0.0
    assert noted((0, 0), (3, 0)).rate(3.0) == 0.0


def test_only_the_last_seconds_count():
    slow = [(second, second) for second in range(101)]
    fast = [(100 + second, 100 + 5 * second) for second in range(1, 13)]
    assert noted(*slow, *fast).rate(112.0) == pytest.approx(5.0)
    assert noted(*slow, *fast[:1]).rate(101.0) == pytest.approx(1.0, abs=0.5)


def test_units_longer_than_the_window_have_a_pace_between_their_ends():
    pace = noted((0, 0), (30, 1), (60, 2))
    for now_s in (60.0, 75.0, 89.0):
        assert pace.rate(now_s) == pytest.approx(1 / 30)


def test_silence_longer_than_usual_counts():
    pace = noted(*((second, second) for second in range(11)))
    assert pace.rate(11.0) == pytest.approx(1.0)
    assert pace.rate(40.0) == pytest.approx(10 / 40)


def test_a_fast_lane_keeps_few_marks():
    pace = noted(*((second / 4, second) for second in range(10_000)))
    assert len(pace._marks) < 50


def test_a_device_is_never_more_than_busy():
    pace = LanePace()
    for second in range(5):
        pace.note(float(second), encoded=second)
        pace.encode_s += 1.2
        pace.decoded += 2
        pace.bytes += 100
    assert pace.rates(4.0) == (2.0, 1.0, 100.0, 1.0)
