"""What the demo's page says of a stream."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from consumers.streaming.demo import view
from consumers.streaming.demo.memory_plot import memory_plot
from consumers.streaming.demo.records import Exchange, MemoryPoint, Status


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (53_248, "53.2 kB"), (1_500_000, "1.5 MB"), (2_340_000_000, "2.34 GB")],
)
def test_sizes_are_readable(nbytes, text):
    assert view.format_bytes(nbytes) == text


def test_times_are_readable():
    assert [view.format_time(seconds) for seconds in (0, 7.46, 60, 727.9)] == ["0.0 s", "7.5 s", "1:00", "12:07"]


@pytest.mark.parametrize("biggest", [0, 1, 999, 1000, 53_248, 999_999, 2_340_000_000, 3 * 10**12])
def test_the_plot_holds_every_point_within_its_axes(biggest):
    history = [MemoryPoint(chunk, biggest * chunk // 7) for chunk in range(1, 8)]
    line = ElementTree.fromstring(memory_plot(history)).find("polyline").get("points")
    corners = [tuple(map(float, corner.split(","))) for corner in line.split()]
    assert len(corners) == 7
    assert all(58 <= x <= 470 and 12 <= y <= 120 for x, y in corners)


def test_what_a_person_wrote_is_escaped():
    asked = Exchange(1, "<script>alert(1)</script>", 0.0, text="<b>", error="")
    chosen = Exchange(2, "?", 0.0, text="<i>", shares=(("<i>", 1.0),))
    failed = Exchange(3, "?", 0.0, error="<u>")
    shown = view.answers_html((asked, chosen, failed)) + view.notice_html("<p2>")
    shown += view.status_html(Status(state="failed", message="<q>"), limit_tokens=1)
    assert not any(tag in shown for tag in ("<script", "<b>", "<i>", "<u>", "<p2>", "<q>"))


def test_a_question_shows_as_a_pause_unless_a_person_paused():
    assert 'data-state="held"' in view.state_html(Status(state="streaming", is_asking=True))
    assert 'data-state="paused"' in view.state_html(Status(state="paused", is_asking=True))
