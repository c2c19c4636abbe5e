"""The text around a stream's frames, in Qwen's chat format."""

from __future__ import annotations

import re

SYSTEM_PROMPT = "You are a helpful assistant."
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
USER = "<|im_start|>user\n"
END_OF_TURN = "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", VISION_START, VISION_END, "<|image_pad|>", "<|video_pad|>")

_VISION = re.compile(re.escape(VISION_START) + ".*?" + re.escape(VISION_END), re.DOTALL)


def system_turn(text: str) -> str:
    """Return the turn that opens a conversation."""
    return f"<|im_start|>system\n{text}{END_OF_TURN}"


def checked_text(text: str, what: str) -> str:
    """Return `text`, which must not hold tokens that would end its turn or stand for frames.

    Raises:
        ValueError: it does, or is no text that UTF-8 can hold.
    """
    if not isinstance(text, str) or text != text.encode(errors="replace").decode():
        raise ValueError(f"{what} must be text, got {text!a}")
    found = [token for token in SPECIAL_TOKENS if token in text]
    if found:
        raise ValueError(f"{what} must not hold {', '.join(found)}")
    return text


def _extract_vision_segment(text: str) -> str:
    """Return the first `<|vision_start|>...<|vision_end|>` of a prompt; without one, the text unchanged."""
    found = _VISION.search(text)
    return found[0] if found else text


def _extract_user_vision_turn(text: str) -> str:
    """Return the first vision segment of a prompt as a user turn of its own; without one, the text unchanged.

    Neither the system prompt nor the user's words come along.
    """
    found = _VISION.search(text)
    return f"{USER}{found[0]}{END_OF_TURN}" if found else text
