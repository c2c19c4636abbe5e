"""Capacity is measured to the end of the file, of the context, of what was asked for, or of memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from consumers.streaming.qwen_runner import QwenRunner
from consumers.streaming.reports import Setting, SourceVideo, report_capacity
from tests.media import write_video


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """49 frames: ten whole chunks, then two and an odd frame."""
    return write_video(tmp_path_factory.mktemp("video") / "long.mp4", frames=49, width=56, height=56)


@pytest.fixture
def setting(eager, long_video):
    return Setting(*eager, SourceVideo(long_video, stride=1), "small")


def test_a_short_video_is_measured_to_its_end(setting):
    report = report_capacity(setting, sizes=["native"])
    (ended,) = report.tables[0].rows
    ten, last = report.tables[1].rows
    assert ended["end"] == "end of file"
    assert (ten["chunks"], ten["real_frames"], ten["padded_frames"]) == (10, 40, 40)
    assert (last["chunks"], last["real_frames"], last["padded_frames"]) == (13, 49, 50)
    assert ended["pixels"] == "56x56"
    assert last["cache_tokens"] > ten["cache_tokens"]
    assert last["cache_bytes"] / last["cache_tokens"] == ten["cache_bytes"] / ten["cache_tokens"]
    assert ended["gb_per_megapixel"] == pytest.approx(last["cache_bytes"] / 1e9 / (50 * 56 * 56 / 1e6))
    assert ended["seconds_at_24_fps"] == 49 / 24
    assert ended["model_bytes"] > 0
    assert last["encode_in_all_s"] == pytest.approx(ten["encode_s"] + last["encode_s"])
    assert last["frames_per_s"] == pytest.approx(49 / last["encode_in_all_s"])
    assert report.failures == []


def test_sizes_are_those_that_the_model_sees(setting):
    report = report_capacity(setting, sizes=["native", "224"], most_chunks=1)
    assert [row["pixels"] for row in report.tables[0].rows] == ["56x56", "224x224"]
    assert [row["end"] for row in report.tables[0].rows] == ["as many chunks as asked for"] * 2


@pytest.mark.parametrize(("size", "shape"), [("224", (224, 224)), ("480p", (480, 853)), ("720p", (720, 1280))])
def test_a_frame_is_scaled_to_rows_with_its_aspect(size, shape):
    from consumers.streaming.reports.capacity import sized

    assert sized(np.zeros((1080, 1920, 3), np.uint8), size).shape == (*shape, 3)


def no_gpu_memory():
    raise torch.OutOfMemoryError("simulated")


@pytest.mark.parametrize("of", ["cpu", "gpu"])
def test_running_out_of_memory_is_an_end_with_what_was_reached(setting, monkeypatch, no_cpu_memory, of):
    extend, calls = QwenRunner.extend, []

    def fails_once_full(runner, sequence, *args, **options):
        calls.append(1)
        if sequence.get_seq_length() > 80:
            no_gpu_memory() if of == "gpu" else no_cpu_memory()
        return extend(runner, sequence, *args, **options)

    monkeypatch.setattr(QwenRunner, "extend", fails_once_full)
    report = report_capacity(setting, sizes=["native"])
    (ended,), (last,) = report.tables[0].rows, report.tables[1].rows
    assert ended["end"] == "out of memory"
    assert 80 < last["cache_tokens"] < 200
    assert last["chunks"] == len(calls) - 1
    assert report.failures == []


def test_a_video_damaged_halfway_is_measured_up_to_the_damage(setting, tmp_path):
    video = write_video(tmp_path / "damaged.mp4", frames=60)
    content, (start, end) = bytearray(video.read_bytes()), (0.75, 0.78)
    cut = slice(int(start * len(content)), int(end * len(content)))
    content[cut] = bytes(cut.stop - cut.start)
    video.write_bytes(content)
    report = report_capacity(replace(setting, video=SourceVideo(video, stride=1)), sizes=["224", "native"])
    assert [row["real_frames"] for row in report.tables[0].rows] == [44, 44]
    assert [line.partition(".mp4:")[0] for line in report.failures] == ["224: damaged", "native: damaged"]


def test_another_error_is_no_end(setting, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("shapes")

    monkeypatch.setattr(QwenRunner, "extend", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        report_capacity(setting, sizes=["native"])


def test_a_limit_ends_the_run_as_memory_does_and_a_first_chunk_that_does_not_fit_is_a_failure(setting):
    report = report_capacity(setting, sizes=["native"], limit_bytes=-(2**60))
    (ended,) = report.tables[0].rows
    assert (ended["end"], ended["chunks"], report.tables[1].rows) == ("out of memory", None, [])
    assert report.failures == ["native: not even the first chunk fits (out of memory)"]


def test_the_end_of_the_context_is_an_end(setting, monkeypatch):
    monkeypatch.setattr(setting.model.config.get_text_config(), "max_position_embeddings", 120)
    report = report_capacity(setting, sizes=["native"])
    assert report.tables[0].rows[0]["end"] == "context full (120 tokens)"
    assert report.tables[1].rows[0]["cache_tokens"] <= 120


def test_a_size_that_there_is_not_is_refused(setting):
    with pytest.raises(ValueError, match="unknown size 1080p; known: native, 224, 480p, 720p"):
        report_capacity(setting, sizes=["1080p"])
