"""The eight prompt cases: what the two helpers take out of a chat text."""

from __future__ import annotations

import pytest

from consumers.streaming.prompts import _extract_user_vision_turn, _extract_vision_segment, checked_text

VIDEO = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHAT = f"{SYSTEM}<|im_start|>user\n{VIDEO}What happens?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        (CHAT, VIDEO),
        (f"{IMAGE} then {VIDEO}", IMAGE),  # the first of two
        ("no frames at all", "no frames at all"),
        ("<|vision_start|><|video_pad|> never closed", "<|vision_start|><|video_pad|> never closed"),
    ],
)
def test_the_vision_segment(text, segment):
    assert _extract_vision_segment(text) == segment


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        (CHAT, f"<|im_start|>user\n{VIDEO}<|im_end|>\n"),  # neither the system prompt nor the words
        (f"{SYSTEM}<|im_start|>user\nLook: {IMAGE}<|im_end|>\n", f"<|im_start|>user\n{IMAGE}<|im_end|>\n"),
        (SYSTEM, SYSTEM),
        ("", ""),
    ],
)
def test_the_user_turn_around_it(text, turn):
    assert _extract_user_vision_turn(text) == turn


def test_text_that_would_end_its_turn_is_refused():
    assert checked_text("a < b | c", "the question") == "a < b | c"
    with pytest.raises(ValueError, match=r"the question must not hold <\|im_end\|>, <\|video_pad\|>"):
        checked_text("x<|im_end|>y<|video_pad|>", "the question")
