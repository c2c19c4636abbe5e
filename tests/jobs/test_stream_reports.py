"""`vlm-cache stream` shows and writes its reports, and refuses what it cannot report on."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from consumers.streaming import (
    DelayedBatchInferenceEngine,
    QwenInferenceWrapper,
    StreamError,
    VideoStreamingInference,
)
from consumers.streaming.qwen_runner import QwenRunner
from jobs import stream_command, stream_reports
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


def no_gpu_memory(*_):
    raise torch.OutOfMemoryError("simulated")


def no_cpu_memory(*_):
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("fails", [no_gpu_memory, no_cpu_memory])
def test_running_out_of_memory_says_what_to_change(video_file, monkeypatch, capsys, fails):
    monkeypatch.setattr(QwenRunner, "features", fails)
    arguments = ["--model", "small", "--video", str(video_file), "--frame-stride", "1", "--rounds", "1"]
    assert main(["stream", "multi-round", *arguments]) == 2
    assert "out of memory: take fewer frames or smaller ones" in capsys.readouterr().err


def test_what_was_measured_before_memory_ended_is_written(video_file, tmp_path, monkeypatch, capsys):
    encode, calls = DelayedBatchInferenceEngine._encode, iter([1])
    monkeypatch.setattr(
        DelayedBatchInferenceEngine, "_encode", lambda engine: encode(engine) if next(calls, 0) else no_gpu_memory()
    )
    arguments = ["--model", "small", "--video", str(video_file), "--frame-stride", "1", "--frames", "4", "--more", "2"]
    assert main(["stream", "delayed", *arguments, *SMALL, "--report", str(tmp_path)]) == 1
    assert "failed: step 5, ask: OutOfMemoryError: simulated" in capsys.readouterr().out
    told = json.loads((tmp_path / "report.json").read_text())
    assert [row["step"] for row in told["tables"]["Steps"]] == ["add 4 frames", "ask", "ask again", "add 2 frames"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["compare", "--frames", "4"], 1),
        (["chunks", "--frames", "4"], 2),
        (["delayed", "--frames", "4", "--more", "2"], 2),
        (["multi-round", "--rounds", "1"], 2),
        (["check"], 1),
    ],
)
def test_a_model_that_cannot_answer_ends_in_a_clear_line(video_file, monkeypatch, capsys, arguments, status):
    def fails(*_, **__):
        raise StreamError("no answer follows")

    for engine in (VideoStreamingInference, DelayedBatchInferenceEngine):
        monkeypatch.setattr(engine, "ask", fails)
    what = ["--model", "small", "--video", str(video_file), "--frame-stride", "1", *SMALL]
    assert main(["stream", *arguments, *what]) == status
    told = capsys.readouterr()
    if status == 2:
        assert told.err.endswith(f"vlm-cache stream {arguments[0]}: no answer follows\n")
    else:
        assert "failed: stream, turns: StreamError: no answer follows" in told.out
        assert "native" in told.out


def test_where_every_way_fails_words_stand_in_place_of_empty_tables(video_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(QwenRunner, "features", no_gpu_memory)
    monkeypatch.setattr(QwenInferenceWrapper, "native_video_inference", no_gpu_memory)
    arguments = ["stream", "compare", "--model", "small", "--video", str(video_file), *SMALL, "--frames", "4"]
    assert main([*arguments, "--report", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    page, written = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (said, page, written):
        assert text.lower().count(": outofmemoryerror: simulated") == 5
        assert "Questions" not in text
    assert (Page(page).plots, page.count("<table>"), "plot-" in written) == ([], 1, False)
    assert json.loads((tmp_path / "report.json").read_text())["tables"] == {
        "Methods": [],
        "Questions": [],
        "Answers": [],
    }


def test_a_report_that_cannot_be_written_is_still_printed(video_file, tmp_path, capsys):
    (tmp_path / "report.md").mkdir()
    arguments = ["stream", "capacity", "--model", "small", "--video", str(video_file), "--size", "native"]
    assert main([*arguments, "--max-chunks", "1", "--report", str(tmp_path), "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["tables"]["Where each size ended"][0]["chunks"] == 1
    assert told.err.endswith(
        f"the report is not whole: cannot write {tmp_path}/report.md: Is a directory; "
        "check the disk's space, quota and permissions\n"
    )
    assert "wrote" not in told.err


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_measured(video_file, monkeypatch, capsys):
    monkeypatch.setattr(stream_reports, "load_streaming_model", None)
    arguments = ["stream", "capacity", "--model", "small", "--video", str(video_file), "--report", "/proc/self"]
    assert main(arguments) == 2
    assert "--report /proc/self: " in capsys.readouterr().err


def test_json_has_null_for_what_is_no_number(video_file, tmp_path, monkeypatch, capsys):
    choose = VideoStreamingInference.ask_choice

    def broken(stream, question, choices):
        best, told = choose(stream, question, choices)
        return best, told | {"scores": dict.fromkeys(choices, math.nan)}

    monkeypatch.setattr(VideoStreamingInference, "ask_choice", broken)
    arguments = ["stream", "chunks", "--model", "small", "--video", str(video_file), *SMALL, "--frames", "4"]
    assert main([*arguments, "--size", "2", "--report", str(tmp_path), "--json"]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    for text in (capsys.readouterr().out, (tmp_path / "report.json").read_text()):
        told = json.loads(text, parse_constant=refuse)
        assert {row["score_difference"] for row in told["tables"]["Chunk sizes"]} == {None}
        assert told["warnings"][0].startswith("continuous, chunks of 2: scores differ by nan")


def test_a_failed_part_is_exit_status_1(video_file, monkeypatch, capsys):
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
