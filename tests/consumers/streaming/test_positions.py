"""Position ids of chunks are those that transformers gives to the whole video."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.streaming.positions import (
    text_positions,
    text_start_after_video,
    tick_of_frame,
    tick_of_time,
    vision_positions,
)
from pipeline.encoders import small_models

RATES = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 7.5, 10, 12, 15, 24, 29.97, 30)
TICKS_PER_S = 2


@pytest.fixture(scope="module")
def model():
    model = small_models.qwen_with_head()
    model.config.vision_config.tokens_per_second = TICKS_PER_S
    return model


def upstream(model, grids: int, *, fps: float) -> list[int]:
    interval = TICKS_PER_S * torch.tensor([2 / fps])[0]
    return (model.model.get_vision_position_ids(7, torch.tensor([grids, 2, 2]), 1, 2, interval)[0] - 7).tolist()


@pytest.mark.parametrize("fps", RATES)
def test_ticks_of_frames_are_upstreams(model, fps):
    ours = [tick_of_frame(2 * grid, fps=fps, tokens_per_second=TICKS_PER_S) for grid in range(1000)]
    assert ours == upstream(model, 1000, fps=fps)


def test_rounding_chunk_by_chunk_gives_other_ticks(model):
    """The control: 6-frame chunks with 1.5 ticks from grid to grid."""
    fps = 2 * TICKS_PER_S / 1.5
    chunks = [int(1.5 * g) + int(4.5 * chunk) for chunk in range(4) for g in range(3)]
    assert chunks != upstream(model, 12, fps=fps)
    assert [tick_of_frame(2 * g, fps=fps, tokens_per_second=TICKS_PER_S) for g in range(12)] == upstream(
        model, 12, fps=fps
    )


@settings(max_examples=50, deadline=None)
@given(fps=st.sampled_from(RATES), frames=st.integers(0, 2000))
def test_true_times_of_a_regular_video_give_the_same_ticks(fps, frames):
    by_time = tick_of_time(frames / fps, tokens_per_second=TICKS_PER_S)
    assert by_time == tick_of_frame(frames, fps=fps, tokens_per_second=TICKS_PER_S)


def test_a_time_just_short_of_a_tick_by_rounding_is_that_tick():
    assert tick_of_time(0.7 - 0.2, tokens_per_second=2) == 1  # 0.49999999999999994 s
    assert tick_of_time(0.49, tokens_per_second=2) == 0


def test_a_video_and_its_text_lie_where_upstream_puts_them(model):
    config = model.config
    before, grids, after = 5, 3, 4
    ids = [1] * before + [config.video_token_id] * (grids * 6) + [1] * after
    kinds = torch.tensor([[2 if token == config.video_token_id else 0 for token in ids]])
    wanted, _ = model.model.get_rope_index(
        torch.tensor([ids]),
        kinds,
        video_grid_thw=torch.tensor([[grids, 4, 6]]),
        second_per_grid_ts=torch.tensor([0.75]),
    )
    ticks = [tick_of_frame(2 * g, fps=2 / 0.75, tokens_per_second=TICKS_PER_S) for g in range(grids)]
    ours = [
        text_positions(0, before),
        vision_positions(before, ticks, rows=2, columns=3),
        text_positions(text_start_after_video(before, ticks[-1], rows=2, columns=3, rule="spatial"), after),
    ]
    assert torch.equal(torch.cat(ours, dim=1), wanted[:, 0])


def test_the_two_rules_for_text_after_a_video_part_when_it_grows_long():
    short, long = ({"start": 10, "last_tick": tick, "rows": 2, "columns": 3} for tick in (2, 30))
    assert [text_start_after_video(**short, rule=rule) for rule in ("spatial", "maximum")] == [13, 13]
    assert [text_start_after_video(**long, rule=rule) for rule in ("spatial", "maximum")] == [13, 41]
