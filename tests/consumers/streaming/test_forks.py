"""A forked child uses a stream of its parent's, or is told why it cannot; it never waits for its parent's threads."""

from __future__ import annotations

import numpy as np
import pytest

from consumers.streaming import (
    DelayedBatchInferenceEngine,
    ForkedAmidChange,
    QwenInferenceWrapper,
    StreamBusy,
    VideoStreamingInference,
)
from consumers.streaming.qwen_wrapper import _GENERATE
from tests.consumers.streaming.streams import QUESTION, append_chunks, held_by_another_thread, in_forked_child, video

FRAMES = video(8)
FEW = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture
def engine(eager):
    engine = VideoStreamingInference(*eager)
    append_chunks(engine, FRAMES[:4], 2)
    return engine


def test_a_child_goes_on_with_its_own_copy_of_a_stream(engine):
    wanted = engine.ask(QUESTION, **FEW)[0]

    def in_child():
        assert engine.ask(QUESTION, **FEW)[0] == wanted
        engine.append_video_chunk(FRAMES[4:])

    assert in_forked_child(in_child)
    assert engine.ask(QUESTION, **FEW)[0] == wanted


def test_a_child_forked_amid_a_change_is_refused_the_stream_until_it_begins_anew(engine):
    wanted = engine.ask(QUESTION, **FEW)[0]

    def in_child():
        for use in (
            lambda: engine.append_video_chunk(FRAMES[4:]),
            lambda: engine.append_frame(FRAMES[4]),
            lambda: engine.ask(QUESTION, **FEW),
            lambda: engine.ask_choice(QUESTION, ["A", "B"]),
        ):
            with pytest.raises(ForkedAmidChange, match="reset"):
                use()
        engine.reset()
        append_chunks(engine, FRAMES[:4], 2)
        assert engine.ask(QUESTION, **FEW)[0] == wanted

    with held_by_another_thread(engine._lock):
        assert in_forked_child(in_child)
    assert engine.ask(QUESTION, **FEW)[0] == wanted


def test_a_child_forked_amid_a_change_is_refused_the_frames_that_were_kept(eager):
    engine = DelayedBatchInferenceEngine(*eager, use_disk_cache=False)
    engine.add_frame(FRAMES[0], 0)
    wanted = engine.ask(QUESTION, **FEW)[0]

    def in_child():
        for use in (lambda: engine.add_frame(FRAMES[1], 1), lambda: engine.ask(QUESTION, **FEW)):
            with pytest.raises(ForkedAmidChange, match="reset"):
                use()
        engine.reset()
        engine.add_frame(FRAMES[0], 0)
        assert engine.ask(QUESTION, **FEW)[0] == wanted

    with held_by_another_thread(engine._lock):
        assert in_forked_child(in_child)
    assert engine.ask(QUESTION, **FEW)[0] == wanted


def test_a_child_does_not_wait_for_its_parents_native_inference(eager):
    wrapper = QwenInferenceWrapper(*eager)
    wanted = wrapper.native_video_inference(FRAMES[:2], QUESTION, max_new_tokens=2)[0]
    with held_by_another_thread(_GENERATE):
        assert in_forked_child(lambda: np.testing.assert_equal(wanted, native(wrapper)))


def native(wrapper) -> str:
    return wrapper.native_video_inference(FRAMES[:2], QUESTION, max_new_tokens=2)[0]


def test_an_answer_that_the_parent_keeps_keeps_no_child_from_changing_its_stream(engine):
    answer = engine.ask_stream(QUESTION, max_new_tokens=4, min_new_tokens=4, update_state=True)
    next(answer)

    def in_child():
        engine.append_video_chunk(FRAMES[4:])
        with pytest.raises(StreamBusy, match="forked"):
            list(answer)
        assert engine.get_cache_info()["total_frames"] == 8
        engine.ask(QUESTION, update_state=True, **FEW)

    assert in_forked_child(in_child)
    assert [*answer][-1]["type"] == "final"
    engine.append_video_chunk(FRAMES[4:])
