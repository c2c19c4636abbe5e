"""`vlm-cache stream` shows and writes its reports, and refuses what it cannot report on."""

from __future__ import annotations

import json
import re

import pytest
import torch

from consumers.streaming.qwen_runner import QwenRunner
from jobs import stream_command
from jobs.__main__ import main
from tests.jobs.test_stats_page import Page
from tests.media import write_video

SMALL = ("--max-pixels", "4704", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "made.mp4", frames=24)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("QWEN_MODEL_PATH", "VIDEO_PATH", "FRAME_STRIDE"):
        monkeypatch.delenv(name, raising=False)


def test_a_report_is_printed_and_written(video_file, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    arguments = ["stream", "delayed", "--model", "small", "--video", str(video_file), "--frame-stride", "1"]
    assert main([*arguments, *SMALL, "--frames", "4", "--more", "2", "--report", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "add 4 frames" in printed.out
    assert "report.html" in printed.err
    page = Page((folder / "report.html").read_text())
    assert page.links == []
    assert page.plots == ["Seconds of each question"]
    written = (folder / "report.md").read_text()
    assert "](plot-1.svg)" in written
    assert (folder / "plot-1.svg").read_text().startswith("<svg ")
    steps = json.loads((folder / "report.json").read_text())["tables"]["Steps"]
    assert [row["frames_encoded"] for row in steps] == [0, 4, 0, 0, 6, 0]


def test_model_video_and_stride_come_from_the_environment(video_file, monkeypatch, capsys):
    for name, value in (("QWEN_MODEL_PATH", "small"), ("VIDEO_PATH", str(video_file)), ("FRAME_STRIDE", "3")):
        monkeypatch.setenv(name, value)
    assert main(["stream", "delayed", *SMALL, "--frames", "4", "--more", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert (facts["model"], facts["video"], facts["frame_stride"], facts["frames"]) == ("small", "made.mp4", 3, 8)


@pytest.mark.parametrize(
    ("arguments", "tables"),
    [
        (["compare", *SMALL, "--frames", "4", "--question", "What?"], ["Methods", "Questions", "Answers"]),
        (["chunks", *SMALL, "--frames", "4", "--size", "2", "--choice", "A"], ["Chunk sizes", "Answers"]),
        (
            ["multi-round", *SMALL, "--rounds", "1", "--chunks-per-round", "1"],
            ["Questions beside the stream", "Answers kept in the stream", "Answers"],
        ),
        (
            ["capacity", "--size", "224", "--max-chunks", "1", "--memory-limit", "4GiB"],
            ["Where each size ended", "Every 10 chunks of 4 frames"],
        ),
        (
            ["check", *SMALL, "--frame-stride", "1"],
            [
                "A red square, then a green triangle",
                *["Questions that leave no trace, continuous", "Questions that leave no trace, turns", "Chunk sizes"],
            ],
        ),
    ],
)
def test_each_report_is_written_with_its_tables_and_plots(video_file, tmp_path, capsys, arguments, tables):
    what = ["--model", "small", "--video", str(video_file), "--report", str(tmp_path), "--json"]
    assert main(["stream", *arguments, *what]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["tables"]) == tables
    assert all(told["tables"].values())
    assert Page((tmp_path / "report.html").read_text()).plots == [plot["title"] for plot in told["plots"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], r"name a model: --model, or \$QWEN_MODEL_PATH"),
        (["--model", "small"], r"name a video: --video, or \$VIDEO_PATH"),
        (["--model", "small", "--video", "missing.mp4"], "missing.mp4: no such file"),
        (["--model", "small", "--video", "VIDEO"], "made.mp4 gives 6 frames"),
        (["--model", "small", "--video", "VIDEO", "--device", "nonsense"], "nonsense"),
        (["--model", "/no/such/folder", "--video", "VIDEO"], "/no/such/folder"),
        (["--model", "small", "--video", "VIDEO", "--attention", "flash_attention_2"], "FlashAttention2"),
        (["--model", "small", "--video", "VIDEO", "--report", "VIDEO"], "--report .*: File exists"),
    ],
)
def test_what_cannot_be_reported_on_is_refused(video_file, arguments, says, capsys):
    known = [str(video_file) if word == "VIDEO" else word for word in arguments]
    assert main(["stream", "delayed", *known]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vlm-cache stream delayed: ")
    assert re.search(says, told), told


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, capsys):
    def fails(_):
        raise ModuleNotFoundError("No module named 'av.video'", name="av.video")

    monkeypatch.setattr(stream_command, "import_module", fails)
    assert main(["stream", "compare"]) == 2
    assert "the package av.video is not installed; pip install 'vlm-cache[stream]'" in capsys.readouterr().err


def test_running_out_of_memory_says_what_to_change(video_file, monkeypatch, capsys):
    def fails(*_):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(QwenRunner, "features", fails)
    assert (
        main(
            [
                "stream",
                "multi-round",
                "--model",
                "small",
                "--video",
                str(video_file),
                "--frame-stride",
                "1",
                "--rounds",
                "1",
            ]
        )
        == 2
    )
    assert "out of memory: take fewer frames or smaller ones" in capsys.readouterr().err


def test_a_failed_part_is_exit_status_1(video_file, monkeypatch, capsys):
    from consumers.streaming.delayed import DelayedBatchInferenceEngine

    ask = DelayedBatchInferenceEngine.ask

    def ask_anew(engine, *args, **options):
        engine._sequence = None
        return ask(engine, *args, **options)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "ask", ask_anew)
    arguments = ["stream", "delayed", "--model", "small", "--video", str(video_file), "--frame-stride", "1"]
    assert main([*arguments, *SMALL, "--frames", "4", "--more", "2"]) == 1
    assert "failed: step 3, ask again" in capsys.readouterr().out


def test_a_real_video_is_compared_and_streamed_as_native_sees_it(real_media, capsys):
    video = real_media / "videos" / "tc_nasa_13013.mp4"
    assert (
        main(["stream", "compare", "--model", "small", "--video", str(video), *SMALL, "--frames", "6", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    agreement = {row["method"]: row["agreement"] for row in told["tables"]["Methods"]}
    assert agreement["native"] == agreement["stream, continuous"] == agreement["delayed"] == 1.0
    assert told["facts"]["frame_stride"] == 15
