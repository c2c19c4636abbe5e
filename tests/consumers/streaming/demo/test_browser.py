"""The demo in a real Chromium: what a person does, and what the page then shows."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import pytest

from tests.media import scramble, write_video

# Keeps what the page showed of an answer, each time that it changed.
WATCH_ANSWERS = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const text = document.querySelector('.vlm-answer')?.textContent ?? '';
        if (text !== window.seen.at(-1)) window.seen.push(text);
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


# What a person reads or presses and cannot see whole in a window of that width.
CUT_OFF = """width => [...document.querySelectorAll('button, label, textarea, h3, p, dl, svg.vlm-plot')]
    .filter(one => one.offsetParent !== null || one.tagName === 'svg')
    .filter(one => one.getBoundingClientRect().right > width).map(one => one.outerHTML.slice(0, 80))"""


def test_a_stream_grows_pauses_answers_goes_on_and_is_reset(tab, long_video):
    tab.upload(long_video)
    tab.choose("chunk", "2")
    tab.press("start-video")
    tab.wait_for_chunks(1)
    first = tab.figures()
    tab.wait_for_chunks(first["chunks"] + 2)
    later = tab.figures()
    assert later["frames"] == 2 * later["chunks"]
    assert later["tokens"] > first["tokens"] > 0
    assert later["bytes"] > first["bytes"] > 0
    assert int(tab.page.get_attribute(".vlm-plot", "data-points")) >= 3
    assert "first frame" in tab.page.inner_text(".vlm-stars figure:first-child")
    assert tab.page.evaluate("document.querySelector('.vlm-stars img').naturalWidth") > 0

    tab.press("pause")
    tab.wait_for_state("paused")
    tab.page.evaluate(WATCH_ANSWERS)
    tab.ask("What happens <b>here</b>?")
    tab.page.wait_for_selector("[data-outcome=done]")
    held = tab.figures()
    assert tab.page.inner_text(".vlm-exchange h4") == "What happens <b>here</b>?"
    seen = tab.page.evaluate("window.seen.filter(text => text !== '' && text !== '…')")
    assert len(seen) >= 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    tab.wait_for_state("paused")  # a person's pause outlasts the question
    assert tab.figures() == held

    tab.page.fill("#choices textarea", "Yes\nNo\n\nMaybe")
    tab.press("choose")
    tab.page.wait_for_selector(".vlm-shares")
    shares = tab.page.eval_on_selector_all("[data-share]", "all => all.map(one => Number(one.dataset.share))")
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=1e-5)

    tab.press("resume")
    tab.wait_for_chunks(held["chunks"] + 1)
    tab.press("reset")
    tab.wait_for_state("empty")
    assert set(tab.figures().values()) == {0}
    assert tab.page.query_selector(".vlm-exchange, .vlm-stars") is None


def test_a_question_holds_a_running_stream_and_lets_it_go_on(tab, long_video, demo, monkeypatch):
    tab.upload(long_video)
    tab.choose("chunk", "2")
    tab.press("start-video")
    tab.wait_for_chunks(1)
    (session,) = demo.sessions.all()
    goes_on = hold_answers(session, monkeypatch)
    tab.ask("What?")
    tab.wait_for_state("held")
    before = tab.figures()
    assert tab.page.is_enabled("#stop")
    tab.page.fill("#choices textarea", "Yes\nNo")
    tab.press("choose")
    assert "One question at a time" in tab.told()
    assert session.status().chunks == before["chunks"]
    goes_on.set()
    tab.page.wait_for_selector("[data-outcome=done]")
    tab.wait_for_state("streaming")
    tab.wait_for_chunks(before["chunks"] + 1)


def hold_answers(session, monkeypatch) -> threading.Event:
    """Hold the session's answers before their first token until the event is set."""
    goes_on, real = threading.Event(), session._backend.engine.ask_stream

    def held(*args, **options):
        goes_on.wait()
        return real(*args, **options)

    monkeypatch.setattr(session._backend.engine, "ask_stream", held)
    return goes_on


def test_an_answer_can_be_stopped(tab, short_video, demo, monkeypatch):
    tab.upload(short_video)
    tab.choose("pace", "As fast")
    tab.press("start-video")
    tab.wait_for_state("ended")
    (session,) = demo.sessions.all()
    goes_on = hold_answers(session, monkeypatch)
    tab.ask("What?")
    tab.press("stop")
    tab.wait("!document.querySelector('#stop:enabled')")
    goes_on.set()
    tab.page.wait_for_selector("[data-outcome=stopped]")


def test_two_tabs_do_not_disturb_each_other_and_a_third_is_told_that_there_is_no_room(
    tab, open_tab, short_video, tmp_path
):
    other = open_tab()
    tab.upload(short_video)
    tab.choose("chunk", "1")
    other.upload(write_video(tmp_path / "other.mp4", frames=48, seed=2))
    other.choose("chunk", "6")
    for one in (tab, other):
        one.choose("pace", "As fast")
        one.press("start-video")
    for one, frames, chunks in ((tab, 24, 24), (other, 48, 8)):
        one.wait_for_state("ended")
        assert one.figures()["frames"] == frames
        assert one.figures()["chunks"] == chunks
    other.ask("What is in the other one?")
    other.page.wait_for_selector("[data-outcome=done]")
    assert tab.page.query_selector(".vlm-exchange") is None
    tab.press("reset")
    tab.wait_for_state("empty")
    assert other.figures()["frames"] == 48

    third = open_tab()
    third.upload(short_video)
    third.press("start-video")
    assert "All 2 places are taken" in third.told()


def test_a_closed_tab_frees_what_its_stream_held(tab, open_tab, long_video, demo):
    closing = open_tab()
    closing.upload(long_video)
    closing.press("start-video")
    closing.wait_for_chunks(1)
    session = demo.sessions.all()[-1]
    held = [weakref.ref(session), weakref.ref(session._backend.engine.sequence.manager.cache)]
    del session
    closing.page.close()
    while len(demo.sessions) > 1 or any(one() is not None for one in held):
        tab.page.wait_for_timeout(50)
        gc.collect()


def test_a_webcam_streams(tab):
    tab.page.get_by_role("tab", name="Webcam").click()
    tab.choose("chunk", "2")
    tab.press("start-webcam")
    tab.wait_for_state("streaming")
    tab.page.click("#webcam [title='grant webcam access'] button")
    tab.page.click("#webcam [title='start recording']")
    tab.wait_for_chunks(2)
    figures = tab.figures()
    assert figures["frames"] == 2 * figures["chunks"]
    tab.page.click("#webcam [title='stop recording']")


def test_what_goes_wrong_is_told_on_the_page(tab, tmp_path):
    tab.press("start-video")
    assert tab.told() == "Choose a video first."
    tab.press("ask")
    tab.wait("[...document.querySelectorAll('.vlm-error')].some(e => e.textContent === 'Write a question first.')")
    tab.ask("What?")
    tab.page.wait_for_selector(".vlm-exchange .vlm-error")
    assert "append frames" in tab.page.inner_text(".vlm-exchange .vlm-error")
    tab.page.fill("#choices textarea", "Yes")
    tab.press("choose")
    tab.wait("[...document.querySelectorAll('.vlm-error')].some(e => e.textContent.startsWith('Write at least two'))")

    tab.upload(scramble(tmp_path / "broken.mp4"))
    tab.press("start-video")
    tab.wait(
        "[...document.querySelectorAll('.vlm-error')].some(e => e.textContent.startsWith('broken.mp4: not decod'))"
    )
    tab.wait_for_state("empty")
    assert "Traceback" not in tab.page.inner_text("body")


def test_a_file_above_the_limit_is_refused(tab, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2 << 20))
    tab.page.set_input_files("#video input[type=file]", str(large))
    tab.page.get_by_text("exceed").first.wait_for()


def test_the_page_fits_a_narrow_window(tab):
    tab.page.set_viewport_size({"width": 400, "height": 800})
    try:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
        assert tab.page.evaluate(CUT_OFF, 400) == []  # what a block clips does not widen the page
    finally:
        tab.page.set_viewport_size({"width": 1280, "height": 900})


def test_nothing_is_fetched_from_elsewhere(tab, demo, contacted):
    """Since the demo began: by the page, which also may not, and by the server."""
    assert [url for url in tab.requests if not url.startswith((demo.address, "data:", "blob:"))] == []
    assert set(contacted) <= {"127.0.0.1", "localhost", "::1"}
    refused = """() => new Promise(done => {
        addEventListener('securitypolicyviolation', event => done(event.blockedURI));
        fetch('http://example.invalid').catch(() => {});
    })"""
    assert "example.invalid" in tab.page.evaluate(refused)


def test_the_page_throws_no_errors(tab):
    assert tab.faults == []
