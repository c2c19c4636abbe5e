"""What the page is made of, before anybody opens it."""

from __future__ import annotations

import pytest

from consumers.streaming.demo.registry import SessionRegistry

pytest.importorskip("gradio", reason="gradio is not installed (extra [stream])")

from consumers.streaming.demo.page import DemoPage


def test_one_event_alone_draws_the_stream():
    """Of two at once the earlier could be drawn last, for good: the server holds that the later one is shown."""
    page = DemoPage(SessionRegistry(pytest.fail, max_sessions=1), note="", limit_tokens=100, fps=2.0)
    draw = [event for event in page.blocks.fns.values() if page._status in event.outputs]
    assert [(event.trigger_mode, [name for _, name in event.targets]) for event in draw] == [("once", ["tick"])]
