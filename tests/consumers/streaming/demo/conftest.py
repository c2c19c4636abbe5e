"""The demo on the small model behind a free port, and tabs of a real Chromium."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumers.streaming import load_streaming_model
from consumers.streaming.demo import DemoServer, ServerOptions, SessionOptions
from tests.consumers.streaming.demo.tab import Tab
from tests.media import write_video

PATIENCE_MS = 90_000  # until a condition counts as never coming true; tests wait for conditions alone
_FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
_NAMES = ("chromium", "chromium-browser", "google-chrome")


_contacted: list[str] = []


def _note_contact(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _contacted.append(arguments[1][0])
    if event == "socket.getaddrinfo":
        _contacted.append(str(arguments[0]))


sys.addaudithook(_note_contact)


@pytest.fixture(scope="session")
def small_streaming():
    """The built-in model and its processor, loaded once."""
    return load_streaming_model("small")


@pytest.fixture(scope="module")
def browser_profile():
    """One profile of Chromium, as the system has it, without a window: its tabs share what the page is made of."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [dev])")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        profile = browser.new_context(permissions=["camera"], viewport={"width": 1280, "height": 900})
        profile.set_default_timeout(PATIENCE_MS)
        yield profile
        browser.close()


@pytest.fixture(scope="module")
def demo(small_streaming) -> Iterator[DemoServer]:
    pytest.importorskip("gradio", reason="gradio is not installed (extra [stream])")
    _contacted.clear()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ServerOptions(port=port, max_sessions=2, max_upload_bytes=1 << 20)
    server = DemoServer(*small_streaming, where, SessionOptions(fps=8, max_new_tokens=48), note="The small model.")
    server.address = server.start()
    yield server
    server.stop()


@pytest.fixture
def contacted(demo) -> list[str]:
    """Every host that this process named or connected to since the demo began."""
    return _contacted


@pytest.fixture(scope="module")
def _first_tab(browser_profile, demo) -> Tab:
    return Tab(browser_profile.new_page(), demo.address)


@pytest.fixture
def tab(_first_tab, demo) -> Tab:
    """A tab with an empty stream, the only tab that has one."""
    _first_tab.make_new()
    while len(demo.sessions) > 1:  # of tabs that the test before has closed
        _first_tab.page.wait_for_timeout(50)
    return _first_tab


@pytest.fixture
def open_tab(browser_profile, demo) -> Iterator[Callable[[], Tab]]:
    """Open one more tab; it is closed when the test is over."""
    tabs: list[Tab] = []

    def open_one() -> Tab:
        tabs.append(Tab(browser_profile.new_page(), demo.address))
        return tabs[-1]

    yield open_one
    for one in tabs:
        one.page.close()


@pytest.fixture(scope="session")
def long_video(tmp_path_factory) -> Path:
    """Fifty seconds of small pictures: at its own pace it outlasts any test."""
    return write_video(tmp_path_factory.mktemp("videos") / "long.mp4", frames=400)


@pytest.fixture(scope="session")
def short_video(tmp_path_factory) -> Path:
    """Three seconds, 24 frames."""
    return write_video(tmp_path_factory.mktemp("videos") / "short.mp4", frames=24, seed=1)
