"""Takes pictures of the demo: `python -m tests.consumers.streaming.demo.screenshot FOLDER [NAME ...]`, of VIEWS."""

from __future__ import annotations

import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from consumers.streaming import load_streaming_model
from consumers.streaming.demo import DemoServer, ServerOptions, SessionOptions
from tests.consumers.streaming.demo.tab import Tab

# Window and colours of each picture; the documentation shows the first, the others are to be looked at.
VIEWS = {
    "streaming-demo": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "streaming-demo-dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "streaming-demo-narrow": {"viewport": {"width": 400, "height": 800}, "color_scheme": "light"},
}
SCENES = [("#1d3557", "#f1faee"), ("#f4a261", "#264653"), ("#e9ecef", "#d00000"), ("#2b2d42", "#ffd166")]


def write_scenes(path: Path) -> Path:
    """Write forty seconds of four scenes, in each of which a ball crosses the picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        for number in range(320):
            ground, ball = SCENES[number // 80]
            picture = Image.new("RGB", (320, 192), ground)
            left = 4 * (number % 80) - 30
            ImageDraw.Draw(picture).ellipse((left, 66, left + 60, 126), fill=ball)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def take(folder: Path, names: list[str]) -> None:
    """Write a PNG for each of the named `VIEWS`."""
    server = DemoServer(
        *load_streaming_model("small"),
        ServerOptions(port=7871),
        SessionOptions(max_new_tokens=24),
        note="The built-in small model has random weights: everything works, and its answers mean nothing.",
    )
    address = server.start()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        video = write_scenes(Path(temporary) / "ball.mp4")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in names:
            tab = Tab(browser.new_context(**VIEWS[name]).new_page(), address)
            tab.upload(video)
            tab.choose("pace", "As fast")
            tab.press("start-video")
            tab.wait_for_state("ended")
            tab.ask("Which way does the ball move?")
            tab.page.wait_for_selector("[data-outcome=done]")
            tab.page.fill("#question textarea", "How many scenes are there?")
            tab.page.fill("#choices textarea", "Two\nThree\nFour")
            tab.press("choose")
            tab.page.wait_for_selector(".vlm-shares")
            tab.page.screenshot(path=str(folder / f"{name}.png"), full_page=True)
            tab.page.close()
        browser.close()
    server.stop()


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2:] or list(VIEWS))
