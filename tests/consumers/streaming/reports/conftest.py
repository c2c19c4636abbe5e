"""A made video and a small model, as every report takes them."""

from __future__ import annotations

import pytest

from consumers.streaming.reports import Setting, SourceVideo
from tests.media import write_video


@pytest.fixture(scope="session")
def video_file(tmp_path_factory):
    """24 frames at 8 per second."""
    return write_video(tmp_path_factory.mktemp("video") / "made.mp4", frames=24)


@pytest.fixture
def setting(eager, video_file):
    return Setting(*eager, SourceVideo(video_file, stride=1), "small", max_new_tokens=6, max_pixels=6 * 28 * 28)
