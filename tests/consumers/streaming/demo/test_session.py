"""A tab's session, its registry and its chunks, without a browser."""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest
import torch

from consumers.streaming.demo import DemoRefused, DemoSession, NoRoom, SessionOptions, SessionRegistry
from consumers.streaming.demo.video_chunks import steady_indices, video_chunks
from pipeline.errors import MediaError
from tests.media import scramble, write_video


@pytest.fixture
def session(small_streaming):
    return DemoSession(*small_streaming, SessionOptions(fps=8, max_new_tokens=4))


def wait_for(session: DemoSession, *states: str) -> None:
    with session._changed:
        session._changed.wait_for(lambda: session._status.state in states)


def play(session: DemoSession, video, *, chunk_size: int = 4) -> None:
    session.start_video(video, chunk_size=chunk_size, is_paced=False)
    wait_for(session, "ended", "failed")


@pytest.mark.parametrize(("size", "chunks"), [(1, 24), (2, 12), (4, 6), (6, 4), (8, 3)])
def test_a_video_streams_in_chunks_of_each_size(session, short_video, size, chunks):
    play(session, short_video, chunk_size=size)
    status = session.status()
    assert (status.state, status.frames, status.chunks) == ("ended", 24, chunks)
    assert status.history[-1].nbytes == status.cache_bytes > 0
    assert status.stars[0].reason == "first frame"


def test_a_size_that_is_not_offered_is_refused(session, short_video):
    with pytest.raises(DemoRefused, match="1, 2, 4, 6, 8"):
        session.start_video(short_video, chunk_size=3, is_paced=False)
    assert session.status().state == "empty"


@pytest.mark.parametrize("state", ["ended", "streaming"])
def test_a_video_that_cannot_be_read_is_refused_and_the_stream_before_it_goes_on(
    session, short_video, long_video, tmp_path, state
):
    if state == "ended":
        play(session, short_video)
    else:
        session.start_video(long_video, chunk_size=4, is_paced=True)
        with session._changed:
            session._changed.wait_for(lambda: session._status.chunks)
    list(session.ask("What?"))
    run, before = session._run, session.exchanges()
    with pytest.raises(DemoRefused, match=r"bad.mp4: not decodable"):
        session.start_video(scramble(tmp_path / "bad.mp4"), chunk_size=4, is_paced=False)
    assert session._run is run
    assert session.exchanges() == before != ()
    assert session.status().state == state
    assert session.status().frames >= (24 if state == "ended" else 4)
    session.reset()


def test_a_video_damaged_halfway_ends_the_stream_with_its_reason_and_another_one_begins_anew(
    session, short_video, monkeypatch
):
    def cut_short(*args, **options):
        yield next(video_chunks(*args, **options))
        raise MediaError("bad.mp4: not decodable")

    with monkeypatch.context() as patched:
        patched.setattr("consumers.streaming.demo.session.video_chunks", cut_short)
        play(session, short_video)
    status = session.status()
    assert (status.state, status.message, status.frames) == ("failed", "bad.mp4: not decodable", 4)
    play(session, short_video)
    assert (session.status().state, session.status().message) == ("ended", "")


def test_a_stream_that_a_full_disk_ends_shows_all_that_is_in_it(session, short_video, monkeypatch):
    real, calls = session._memory.add_frame, iter(range(5))

    def fails(pixels, time_s):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(pixels, time_s)

    monkeypatch.setattr(session._memory, "add_frame", fails)
    play(session, short_video)
    status, held = session.status(), session._backend.get_cache_info()
    assert (status.state, status.message) == ("failed", "[Errno 28] No space left on device")
    assert (status.frames, status.tokens, status.time_s) == (8, held["cache_seq_length"], 7 / 8)


def test_a_fault_of_ours_is_logged_and_not_shown(session, short_video, monkeypatch, caplog):
    def fails(*_args, **_options):
        raise KeyError("secret")

    monkeypatch.setattr(session._backend.engine, "append_video_chunk", fails)
    play(session, short_video)
    assert "secret" not in session.status().message
    assert "secret" in caplog.text


def _system_out_of_memory(*_, **__):
    raise MemoryError


def _cpu_out_of_memory(*_, **__):
    torch.empty(1 << 60, dtype=torch.uint8)


def _gpu_out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("simulated")


@pytest.mark.parametrize("fails", [_system_out_of_memory, _cpu_out_of_memory, _gpu_out_of_memory])
def test_memory_that_ends_is_told_as_what_it_is(session, short_video, monkeypatch, caplog, fails):
    monkeypatch.setattr(session._backend.engine, "append_video_chunk", fails)
    play(session, short_video)
    assert (session.status().state, session.status().message.partition(";")[0]) == ("failed", "Memory ran out")
    monkeypatch.undo()
    play(session, short_video)
    monkeypatch.setattr(session._backend.engine, "ask_stream", fails)
    assert list(session.ask("What?"))[-1][0].error.startswith("Memory ran out;")
    assert caplog.text == ""


def test_a_paused_stream_takes_nothing_until_it_is_resumed(session, long_video):
    session.start_video(long_video, chunk_size=8, is_paced=False)
    session.pause()
    before = session.status().chunks
    assert list(session.ask("What?"))[-1][0].outcome == "done"
    assert session.status().chunks <= before + 1  # the chunk at hand
    session.resume()
    wait_for(session, "ended")
    assert session.status().frames == 400


def test_a_question_splits_no_chunk_and_sees_the_stream_after_it(session, long_video, monkeypatch):
    appending, goes_on, real = threading.Event(), threading.Event(), session._backend.engine.append_video_chunk

    def held(*args, **options):
        appending.set()
        goes_on.wait()
        real(*args, **options)

    monkeypatch.setattr(session._backend.engine, "append_video_chunk", held)
    session.start_video(long_video, chunk_size=2, is_paced=False)
    appending.wait()
    answers: list = []
    asker = threading.Thread(target=lambda: answers.extend(session.ask("What?")))
    asker.start()
    while not session.status().is_asking:
        pass
    goes_on.set()
    asker.join()
    assert answers[-1][0].text
    assert answers[-1][0].time_s == pytest.approx(1 / 8)
    session.reset()


@pytest.mark.parametrize("end", [DemoSession.stop_answer, DemoSession.reset])
def test_a_question_that_is_ended_while_it_waits_for_a_chunk_says_so(session, end):
    session.start_webcam(chunk_size=1)
    session.add_webcam_frame(np.zeros((56, 84, 3), np.uint8))
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(DemoRefused) as refused:
            session.ask("What?")
        said.append(str(refused.value))

    def let_go() -> None:
        with session._changed:
            session._changed.wait_for(lambda: not session._questions.is_asking)
            session._is_appending = False
            session._changed.notify_all()

    session._is_appending = True
    threads = [threading.Thread(target=ask), threading.Thread(target=let_go)]
    threads[0].start()
    while not session.status().is_asking:
        pass
    threads[1].start()
    end(session)
    for thread in threads:
        thread.join()
    assert said == ["The question was ended while it waited for the chunk at hand."]
    assert session.status().frames == (1 if end is DemoSession.stop_answer else 0)
    assert session.exchanges() == ()


def test_a_reset_ends_the_answer_at_hand_and_keeps_nothing_of_it(session, short_video):
    play(session, short_video)
    answer = session.ask("What?")
    next(answer)
    session.reset()
    assert not session.status().is_asking
    assert len(list(answer)) <= 1  # nothing more than that it ended
    assert session.exchanges() == ()


def test_an_answer_whose_reader_is_gone_lets_the_stream_go_on(session, short_video):
    play(session, short_video)
    answer = session.ask("What?")
    next(answer)
    answer.close()
    assert not session.status().is_asking
    assert session.exchanges()[0].outcome == "stopped"


def test_choices_get_shares_of_one(session, short_video):
    play(session, short_video)
    (exchange,) = list(session.choose("Bright?", ["Yes ", "", "No"]))[-1]
    assert [choice for choice, _ in exchange.shares] == ["Yes", "No"]
    assert sum(share for _, share in exchange.shares) == pytest.approx(1)
    assert exchange.text == max(exchange.shares, key=lambda pair: pair[1])[0]
    with pytest.raises(DemoRefused, match="two different choices"):
        session.choose("Bright?", ["Yes", "Yes"])


@pytest.mark.parametrize("question", ["caf\ud800e", "<|im_end|>"])
def test_a_question_that_no_page_or_prompt_can_hold_is_refused_and_not_kept(session, short_video, question):
    play(session, short_video)
    for ask in (session.ask, lambda asked: session.choose(asked, ["Yes", "No"])):
        with pytest.raises(DemoRefused, match="the question must"):
            ask(question)
    assert session.exchanges() == ()
    assert not session.status().is_asking


def test_what_does_not_fit_is_told_with_what_the_person_at_the_page_can_do(small_streaming, short_video):
    session = DemoSession(*small_streaming, SessionOptions(fps=8, max_new_tokens=4, max_cache_tokens=20))
    play(session, short_video)
    assert session.status().message.endswith("20 fit; take smaller chunks, or more --max-cache-tokens.")
    session = DemoSession(*small_streaming, SessionOptions(fps=8, max_new_tokens=4))
    play(session, short_video)
    (exchange,) = list(session.ask("word " * 5000))[-1]
    assert exchange.error.endswith(" fit; ask something shorter, or reset.")


def test_a_full_stream_with_an_odd_last_frame_leaves_room_for_questions(small_streaming, tmp_path, monkeypatch):
    """The pictures take more tokens than are left for a question."""

    def played(frames):
        session = DemoSession(*small_streaming, SessionOptions(fps=8, max_new_tokens=4))
        play(session, write_video(tmp_path / f"{frames}.mp4", frames=frames, width=280, height=280), chunk_size=2)
        return session

    config, context = small_streaming[0].config.get_text_config(), played(8).status().tokens + 80 + 4
    monkeypatch.setattr(config, "max_position_embeddings", context)
    monkeypatch.setattr("consumers.streaming.demo.session._QUESTION_TOKENS", 80)
    session = played(9)
    assert (session.status().frames, session.status().state) == (9, "ended")
    (exchange,) = list(session.ask("What?"))[-1]
    assert (exchange.outcome, exchange.error) == ("done", "")


def test_an_endless_webcam_stays_within_its_limits(small_streaming, monkeypatch):
    monkeypatch.setattr("consumers.streaming.demo.session.MOST_POINTS", 20)
    session = DemoSession(*small_streaming, SessionOptions(max_cache_tokens=400, star_frames=3, max_new_tokens=4))
    session.start_webcam(chunk_size=1)
    for number in range(60):
        session.add_webcam_frame(np.full((28, 28, 3), 255 * (number % 2), np.uint8))
    status = session.status()
    assert status.frames == 60
    assert status.tokens <= 400
    assert status.evicted_tokens > 0
    assert 10 < len(status.history) <= 20
    assert status.history[-1].chunk == 60
    assert len(status.stars) == 3


def test_a_webcam_frame_of_another_size_ends_the_stream_with_a_reason(session):
    session.start_webcam(chunk_size=1)
    session.add_webcam_frame(np.zeros((56, 84, 3), np.uint8))
    session.add_webcam_frame(np.zeros((84, 56, 3), np.uint8))
    assert session.status().state == "failed"
    assert "84x56" in session.status().message


def test_a_model_without_room_for_answers_is_refused(small_streaming):
    with pytest.raises(ValueError, match="leave nothing"):
        SessionOptions(max_new_tokens=10**6).limit_tokens(small_streaming[0])


def test_tabs_that_show_no_sign_of_life_make_room(small_streaming):
    def make() -> DemoSession:
        return DemoSession(*small_streaming, SessionOptions())

    full = SessionRegistry(make, max_sessions=1)
    assert full.get("a") is full.get("a") is full.find("a")
    with pytest.raises(NoRoom):
        full.get("b")
    full.close("a")
    assert full.find("a") is None
    silent = SessionRegistry(make, max_sessions=1, idle_s=-1.0)
    silent.get("a")
    silent.get("b")
    assert silent.find("a") is None


@pytest.fixture
def start_during(session, short_video, monkeypatch):
    """Start the short video, and do something else while its file is being opened; returns when no video streams."""
    opening, goes_on = threading.Event(), threading.Event()

    def slow(path, **options):
        if path == short_video:
            opening.set()
            goes_on.wait()
        return video_chunks(path, **options)

    def start(something_else):
        starter = threading.Thread(target=lambda: session.start_video(short_video, chunk_size=4, is_paced=False))
        starter.start()
        opening.wait()
        something_else()
        goes_on.set()
        starter.join()
        for feeder in threading.enumerate():
            if feeder.name == "demo-feeder":
                feeder.join()

    monkeypatch.setattr("consumers.streaming.demo.session.video_chunks", slow)
    return start


def test_a_video_whose_tab_is_closed_while_it_is_opened_never_streams(session, start_during):
    registry = SessionRegistry(lambda: session, max_sessions=1)
    registry.get("a")
    start_during(lambda: registry.close("a"))
    session.start_webcam(chunk_size=1)
    assert (session.status().state, session.status().frames) == ("empty", 0)


@pytest.mark.parametrize(
    ("press", "wanted"),
    [
        (lambda session, _: session.reset(), ("empty", False, 0)),
        (lambda session, _: session.start_webcam(chunk_size=2), ("streaming", True, 0)),
        (lambda session, other: session.start_video(other, chunk_size=8, is_paced=False), ("ended", False, 400)),
    ],
)
def test_what_is_pressed_while_a_video_is_opened_stays_in_effect(session, start_during, long_video, press, wanted):
    start_during(lambda: press(session, long_video))
    status = session.status()
    assert (status.state, status.is_webcam, status.frames) == wanted


def test_a_start_that_is_refused_while_a_video_is_opened_takes_nothing_from_it(session, start_during, tmp_path):
    def refused():
        with pytest.raises(DemoRefused, match="no such file"):
            session.start_video(tmp_path / "missing.mp4", chunk_size=4, is_paced=False)

    start_during(refused)
    assert (session.status().state, session.status().frames) == ("ended", 24)


def test_a_start_that_waits_for_the_chunk_at_hand_gives_way_to_a_later_reset(session, monkeypatch):
    def reset_meanwhile(_):
        monkeypatch.undo()
        session.reset()

    monkeypatch.setattr(session._changed, "wait_for", reset_meanwhile)
    session.start_webcam(chunk_size=2)
    assert session.status().state == "empty"


@pytest.mark.parametrize(
    ("times", "fps", "wanted"),
    [
        (np.arange(24) / 8, 2.0, [0, 4, 8, 12, 16, 20]),
        (np.arange(5) / 1, 2.0, [0, 1, 2, 3, 4]),
        (np.array([0.0]), 2.0, [0]),
        (np.array([3.0, 3.1, 3.45, 3.9, 5.0]), 2.0, [0, 2, 3, 4]),
    ],
)
def test_frames_are_taken_at_a_steady_rate_by_their_true_times(times, fps, wanted):
    assert steady_indices(times, fps) == wanted


def test_a_last_chunk_may_be_shorter(short_video):
    chunks = list(video_chunks(short_video, size=4, fps=2.0))
    assert [len(chunk) for chunk in chunks] == [4, 2]
    assert [frame.time_s for chunk in chunks for frame in chunk] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
