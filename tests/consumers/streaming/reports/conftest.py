"""A made video and a small model, as every report takes them."""

from __future__ import annotations

import pytest
import torch

from consumers.streaming.reports import Setting, SourceVideo
from tests.media import write_video


@pytest.fixture(scope="session")
def video_file(tmp_path_factory):
    """24 frames at 8 per second."""
    return write_video(tmp_path_factory.mktemp("video") / "made.mp4", frames=24)


@pytest.fixture(scope="session")
def uneven_file(tmp_path_factory):
    """12 frames a tenth of a second apart, then 12 that are 2 seconds apart."""
    times_s = [0.1 * min(index, 12) + 2 * max(0, index - 12) for index in range(24)]
    return write_video(tmp_path_factory.mktemp("video") / "uneven.mkv", times_s=times_s)


@pytest.fixture
def no_cpu_memory():
    """A stand-in that raises what torch says when the system gives it no memory on the CPU."""

    def fails(*_, **__):
        torch.empty(1 << 60, dtype=torch.uint8)

    return fails


@pytest.fixture
def setting(eager, video_file):
    return Setting(*eager, SourceVideo(video_file, stride=1), "small", max_new_tokens=6, max_pixels=6 * 28 * 28)


@pytest.fixture
def memory_ends(monkeypatch):
    """Let an engine's method run out of memory from its n-th call on."""

    def arrange(engine, name, *, call):
        real, calls = getattr(engine, name), iter(range(1, call))

        def ends(*args, **options):
            if next(calls, None) is None:
                raise MemoryError
            return real(*args, **options)

        monkeypatch.setattr(engine, name, ends)

    return arrange
