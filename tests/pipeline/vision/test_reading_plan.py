"""Where the reader seeks and where it reads on."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.vision.reading_plan import SEEK_US, Run, _cost_us, keyframe_before, reading_plan
from pipeline.vision.survey import Survey, SurveyedFrame


def video(keyframes, num_frames, *, container="mov", nbytes=20_000, order=None, width=640, height=480) -> Survey:
    order = order or list(range(num_frames))
    frames = tuple(SurveyedFrame(i, order[i], i in keyframes, order[i], nbytes) for i in range(num_frames))
    return Survey(container, "h264", frames, 25.0, Fraction(1, 25), "yuv420p", width, height)


def test_every_needed_group_of_pictures_is_sought_and_no_other():
    survey = video({0, 100, 200, 300}, 400)
    assert reading_plan(survey, [10, 30, 320, 399]) == [Run(0, (10, 30)), Run(300, (320, 399))]


def test_a_group_that_follows_at_once_is_read_on_into():
    survey = video({0, 10, 20}, 30)
    assert reading_plan(survey, [0, 9, 10, 25]) == [Run(0, (0, 9, 10)), Run(20, (25,))]


def test_a_few_small_pictures_are_cheaper_than_a_seek():
    small = {"width": 64, "height": 48, "nbytes": 20}
    assert reading_plan(video({0, 10}, 20, **small), [7, 10]) == [Run(0, (7, 10))]
    assert reading_plan(video({0, 10}, 20, nbytes=200_000), [7, 10]) == [Run(0, (7,)), Run(10, (10,))]


def test_pictures_shown_before_a_keyframe_and_decoded_after_it_belong_to_the_group_before():
    # Open group: 4 is a keyframe; 3 is decoded after it.
    survey = video({0, 4}, 6, order=[0, 1, 2, 4, 3, 5])
    assert reading_plan(survey, [3, 4]) == [Run(0, (3, 4))]


def test_what_was_decoded_ahead_is_not_decoded_again():
    # 1 is decoded last of its group, behind 2 and 3; the keyframe 4 follows it at once.
    survey = video({0, 4}, 6, order=[0, 3, 1, 2, 4, 5])
    assert reading_plan(survey, [1, 3, 4]) == [Run(0, (1, 3, 4))]


def test_where_nobody_can_seek_everything_is_read_through():
    survey = video({0, 10, 20}, 30, container="mpegts")
    assert keyframe_before(survey, 25) == 0
    assert reading_plan(survey, [3, 25]) == [Run(0, (3, 25))]


@given(st.data())
def test_the_plan_costs_no_more_than_seeking_always_or_never(data):
    count = data.draw(st.integers(1, 60))
    keyframes = {0} | data.draw(st.sets(st.integers(0, count - 1)))
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    survey = video(keyframes, count, nbytes=data.draw(st.integers(1, 100_000)), width=64, height=64)

    def cost(runs):
        return sum(SEEK_US + _cost_us(survey, run.start, run.wanted[-1] + 1) for run in runs)

    plan = reading_plan(survey, wanted)
    groups = {}
    for index in wanted:
        groups.setdefault(keyframe_before(survey, index), []).append(index)
    always = [Run(start, tuple(group)) for start, group in groups.items()]
    assert [index for run in plan for index in run.wanted] == wanted
    assert cost(plan) <= cost(always) + 1e-6
    assert cost(plan) <= cost([Run(keyframe_before(survey, wanted[0]), tuple(wanted))]) + 1e-6
