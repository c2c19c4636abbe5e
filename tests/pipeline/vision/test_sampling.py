"""Which frames each rule chooses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vision import SamplingRule

ALL_RULES = ["source", "longva", "lmms-eval-pyav", "vlmevalkit", "fps:1", "fps:0.3", "fps:100"]


def chosen(name: str, num_frames: int, count: int, fps: float = 25.0) -> list[int]:
    return SamplingRule.parse(name).indices(num_frames, count=count, fps=fps)


@pytest.mark.parametrize("name", ALL_RULES)
@given(num_frames=st.integers(1, 20_000), count=st.integers(1, 256), fps=st.floats(0.5, 120))
def test_every_rule_gives_ascending_indices_inside_the_video(name, num_frames, count, fps):
    indices = chosen(name, num_frames, count, fps)
    assert 1 <= len(indices) <= count
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < num_frames


@given(num_frames=st.integers(1, 20_000), count=st.integers(1, 256))
def test_named_rules_follow_their_sources(num_frames, count):
    evenly = np.linspace(0, num_frames - 1, count, dtype=int).tolist()
    assert chosen("longva", num_frames, count) == evenly
    assert chosen("source", num_frames, count) == (list(range(num_frames)) if num_frames <= count else evenly)
    fewer = np.linspace(0, num_frames - 1, min(num_frames, count), dtype=int)
    assert chosen("lmms-eval-pyav", num_frames, count) == np.unique(fewer).tolist()
    step = num_frames / (count + 1)
    assert chosen("vlmevalkit", num_frames, count) == [int(i * step) for i in range(1, count + 1)]


def test_a_short_video_is_taken_whole_or_repeated_as_the_rule_says():
    assert chosen("source", 3, 5) == [0, 1, 2]
    assert chosen("longva", 3, 5) == [0, 0, 1, 1, 2]
    assert chosen("lmms-eval-pyav", 3, 5) == [0, 1, 2]
    assert chosen("vlmevalkit", 3, 5) == [0, 1, 1, 2, 2]


def test_a_rate_takes_frames_from_the_first_on():
    assert chosen("fps:1", 100, 128) == [0, 25, 50, 75]
    assert chosen("fps:2", 50, 128) == [0, 12, 25, 37]
    assert chosen("fps:0.1", 30, 128) == [0]


def test_a_rate_above_the_videos_takes_every_frame_once():
    assert chosen("fps:60", 5, 128) == [0, 1, 2, 3, 4]


def test_a_rate_that_gives_too_many_frames_is_spread_over_the_whole_video():
    assert chosen("fps:1", 25 * 1000, 4) == [0, 8333, 16666, 24999]


def test_equal_rates_are_equal_rules():
    assert SamplingRule.parse("fps:1.0") == SamplingRule.parse("fps:1")


@pytest.mark.parametrize("name", ["uniform", "", "fps", "fps:", "fps:0", "fps:-1", "fps:nan", "fps:inf", "Source"])
def test_an_unknown_rule_is_refused_by_name(name):
    with pytest.raises(ValueError, match="sampling rule"):
        SamplingRule.parse(name)


@pytest.mark.parametrize(("num_frames", "count"), [(0, 8), (8, 0)])
def test_nothing_to_choose_from_is_an_error(num_frames, count):
    with pytest.raises(ValueError, match="at least 1"):
        chosen("source", num_frames, count)


def test_the_rules_need_no_decoder():
    script = (
        "import sys; sys.modules.update(av=None, decord=None, PIL=None, transformers=None); "
        "from pipeline.vision import SamplingRule; print(SamplingRule.parse('source').indices(9, count=3, fps=1))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 4, 8]\n"
