"""One tab of the demo as a person uses it: what to press, what to wait for, what is to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Tab:
    """A page of the demo, opened; `requests` are the addresses that it asked for, `faults` what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#start-video")

    def make_new(self) -> None:
        """Forget the stream, the file and what was written; choose the page's own settings."""
        self.press("reset")
        self.wait_for_state("empty")
        self.page.get_by_role("tab", name="Video").click()
        if self.page.is_visible("#video [aria-label=Clear]"):
            self.page.click("#video [aria-label=Clear]")
        for box in ("question", "choices"):
            self.page.fill(f"#{box} textarea", "")
        self.choose("chunk", "4")
        self.choose("pace", "The video's own")

    def upload(self, video: Path) -> None:
        self.page.set_input_files("#video input[type=file]", str(video))
        self.page.wait_for_selector("#video video, #video .error, [data-testid=toast-body]", state="attached")

    def choose(self, group: str, label: str) -> None:
        self.page.locator(f"#{group} label", has_text=label).click()

    def press(self, button: str) -> None:
        self.page.click(f"#{button}:enabled")

    def wait(self, expression: str) -> None:
        """Wait until JavaScript says yes."""
        self.page.wait_for_function(expression)

    def wait_for_state(self, state: str) -> None:
        self.page.wait_for_selector(f"[data-state={state}]")

    def wait_for_chunks(self, at_least: int) -> None:
        self.wait(f"Number(document.querySelector('[data-figure=chunks]').dataset.value) >= {at_least}")

    def figures(self) -> dict[str, int]:
        """Return all figures of one moment."""
        pairs = "all => all.map(one => [one.dataset.figure, Number(one.dataset.value)])"
        return dict(self.page.eval_on_selector_all("[data-figure]", pairs))

    def ask(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.press("ask")

    def told(self) -> str:
        """Wait for what the page tells of something that went wrong."""
        return self.page.wait_for_selector(".vlm-error").inner_text()
