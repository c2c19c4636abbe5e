"""`vlm-cache evaluate` on a small benchmark: what it says, what it writes, and that it notices what it must."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import openpyxl
import pyarrow.parquet
import pytest
import torch

from cache_store import FeatureStore, StoreWriteError, int8
from cache_store.copying import copy
from consumers.evaluation import EvaluationError, LongVA_Cached
from jobs import evaluate_command
from jobs.__main__ import main
from jobs.evaluate_files import ResultsFolder
from pipeline.sources import BENCHMARKS, Benchmark
from pipeline.vision.cuts import Cut
from tests.consumers.evaluation.conftest import NFRAME, build, one_thread  # noqa: F401 - a fixture
from tests.media import write_video

VIDEOS = ("first", "second", "=third")


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_thread):  # noqa: F811
    """A small Video-MME and a store with the features of all its videos. Tests copy what they change."""
    root = tmp_path_factory.mktemp("evaluate")
    rows = []
    for number, name in enumerate(VIDEOS):
        write_video(root / "data" / "video" / f"{name}.mp4", frames=6 + 8 * number, seed=number)
        for asked in range(2):
            row = {"videoID": name, "question_id": f"{name}-{asked}", "question": f"What happens {asked} times?"}
            row |= {"options": ["A. a cat", "B. a dog", "C. nothing"], "answer": "ABC"[number], "domain": "Sports"}
            rows.append({**row, "duration": ("short", "medium", "long")[number], "task_type": "Counting"})
    rows.append({"videoID": "first", "question": "Describe it."})
    (root / "data" / "questions.json").write_text(json.dumps(rows))
    build(root / "store", {name: (root / "data" / "video" / f"{name}.mp4", Cut()) for name in VIDEOS})
    return root


@pytest.fixture
def run(made, tmp_path, capsys, monkeypatch):
    """Run `evaluate` over a copy of the store; returns the status, the JSON, and what was said on stderr."""
    shutil.copytree(made / "store", tmp_path / "store")
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def run_one(*arguments, fresh=True):
        what = ["--source", "video-mme", "--data", "data", "--store", "store", "--nframe", str(NFRAME)] if fresh else []
        status = main(["evaluate", *what, "--json", *map(str, arguments)])
        said = capsys.readouterr()
        return status, json.loads(said.out) if said.out else None, said.err

    return run_one


def test_two_models_agree_with_and_without_the_cache(run, tmp_path):
    status, report, said = run("--model", "small", "--model", "small:1")
    assert status == 0, said
    folder = tmp_path / report["results"]
    assert re.fullmatch(r"longva_cached_\d{8}_\d{6}", folder.name)
    assert folder.parent == tmp_path / "results"
    assert (report["failed"], report["not_multiple_choice"]) == ([], 1)
    for model, name in zip(report["models"], ("small", "small:1"), strict=True):
        counts = [model[field] for field in ("questions", "answered", "agreeing", "hits")]
        assert (model["model"], counts, model["is_sound"]) == (name, [6, 6, 6, 6], True)
        assert model["by_duration"].keys() == {"short", "medium", "long"}
        assert model["by_domain"]["Sports"]["questions"] == 6
        assert model["accuracy"] == model["overall"]["right"] / 6
        assert model["cached"]["tower_s"] == model["cached"]["pixels_s"] == 0 < model["live"]["tower_s"]
        assert model["live"]["read_s"] == 0 < model["cached"]["read_s"]
    assert "Hit rate: 100.0%" in said
    written = {path.name for path in folder.iterdir()}
    assert {"evaluate.log", "report.html", "report.json", "results.parquet", "small_Video-MME.xlsx"} <= written
    assert json.loads((folder / "report.json").read_text()) == report
    assert "Hit rate: 100.0%" in (folder / "evaluate.log").read_text()


def test_the_tables_hold_every_question(run, tmp_path):
    _, report, _ = run("--model", "small", "--first", "5")
    folder = tmp_path / report["results"]
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    assert [row["question_id"] for row in rows] == ["first-0", "first-1", "second-0", "second-1", "=third-0"]
    assert all(row["agrees"] and row["is_hit"] and len(row["cached_logits"]) == 3 for row in rows)
    assert all(row["cached_total_s"] > 0 for row in rows)
    sheet = openpyxl.load_workbook(folder / "small_Video-MME.xlsx").active
    head, *cells = list(sheet.iter_rows())
    assert [cell.value for cell in head][-3:] == ["candidates", "answer", "prediction"]
    assert [row[-1].value for row in cells] == [row["cached"] for row in rows]
    # A text, and no formula.
    assert (cells[-1][1].value, cells[-1][1].data_type) == ("=third", "s")


def test_the_page_is_one_file_that_shows_every_figure(run, tmp_path):
    _, report, _ = run("--model", "small")
    page = (tmp_path / report["results"] / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    for heading in ("Models", "Time by stage", "Accuracy by duration", "Accuracy by domain", "Accuracy by task"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 4
    assert "1 questions are no multiple choice" in page
    assert "What is wrong" not in page


def test_a_store_behind_a_url_gives_the_same_report(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    url = f"memory://{tmp_path.name}/longva"
    with FeatureStore(tmp_path / "store") as source, FeatureStore(url) as target:
        list(copy(source, target))
    status, report, said = run("--model", "small", "--store", url, "--first", "3")
    assert status == 0, said
    assert [report["models"][0][field] for field in ("questions", "agreeing", "hits")] == [3, 3, 3]
    folder = tmp_path / report["results"]
    assert json.loads((folder / "evaluate.json").read_text())["store"] == url
    assert run("--resume", folder, fresh=False)[0] == 0


class TestExitStatus1:
    def test_a_feature_that_is_not_there(self, run, tmp_path):
        with FeatureStore(tmp_path / "store") as store:
            store.delete(next(key for key in store.keys() if key.video_id == "second"))
        status, report, _ = run("--model", "small")
        assert status == 1
        assert [fault["question_id"] for fault in report["failed"]] == ["second-0", "second-1"]
        assert {fault["reason"] for fault in report["failed"]} == {"its feature was not found in the store"}
        assert (report["models"][0]["agreeing"], report["models"][0]["hits"]) == (6, 4)

    def test_a_feature_with_one_other_bit(self, run, tmp_path):
        with FeatureStore(tmp_path / "store") as store:
            key = next(key for key in store.keys() if key.video_id == "first")
            record = store.record_of(key)
            value = store.get(key)
            value["vision_features"].view(torch.int16)[0, 0, 0] ^= 1 << 9
            store.put(key, value, recipe=record.recipe)
        status, report, _ = run("--model", "small")
        assert status == 1
        assert {fault["video_id"] for fault in report["failed"]} == {"first"}
        assert "other logits" in report["failed"][0]["reason"]
        page = (tmp_path / report["results"] / "report.html").read_text()
        assert "2 answered otherwise with the cache than without" in page
        assert "first-0" in page

    def test_a_video_that_is_gone_or_broken(self, run, tmp_path):
        (tmp_path / "data/video/first.mp4").unlink()
        (tmp_path / "data/video/second.mp4").write_bytes(b"nothing")
        status, report, _ = run("--model", "small")
        assert status == 1
        reasons = {fault["video_id"]: fault["reason"] for fault in report["failed"]}
        assert "no file" in reasons["first"]
        assert "second.mp4" in reasons["second"]
        assert report["models"][0]["answered"] == 2

    def test_features_that_are_int8_and_lost_their_recipe(self, run, tmp_path):
        with FeatureStore(tmp_path / "store") as store:
            key = next(key for key in store.keys() if key.video_id == "first")
            recipe = {**store.record_of(key).recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)}
            path = store.put(key, store.get(key), recipe=recipe, is_second=True)
            store.put(key, torch.load(path, weights_only=True))
        status, report, _ = run("--model", "small", "--first", "1")
        assert status == 1
        assert "InexactFeature" in report["failed"][0]["reason"]
        assert "is kept as int8" in report["failed"][0]["reason"]
        assert "Traceback" not in (tmp_path / report["results"] / "evaluate.log").read_text()

    def test_features_that_another_recipe_made(self, run, tmp_path):
        status, report, _ = run("--model", "small", "--sampling", "longva", "--first", "1")
        assert status == 1
        assert "sampling" in report["failed"][0]["reason"]


def test_an_evaluation_goes_on_where_it_was_broken_off(run, tmp_path, monkeypatch):
    asked = []
    from consumers.evaluation import comparison

    whole = comparison._asked_both_ways

    def broken_off(longva, row, question):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(row)
        return whole(longva, row, question)

    monkeypatch.setattr(comparison, "_asked_both_ways", broken_off)
    status, report, said = run("--model", "small")
    assert (status, report) == (130, None)
    (folder,) = (tmp_path / "results").iterdir()
    assert f"to go on: vlm-cache evaluate --resume {folder.relative_to(tmp_path)}" in said
    with open(folder / "answers.jsonl", "a") as file:
        file.write('{"model": "small", "row": 4, "torn')
    asked.clear()
    status, report, _ = run("--resume", folder, fresh=False)
    assert (status, asked) == (0, [4, 5])
    assert report["models"][0]["questions"] == 6
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 6


def test_an_answer_to_what_is_another_question_by_now_is_asked_again(run, tmp_path):
    _, report, _ = run("--model", "small", "--first", "3")
    file = tmp_path / "data" / "questions.json"
    rows = json.loads(file.read_text())
    rows[1] |= {"question": "Who is it?", "answer": "B"}
    file.write_text(json.dumps(rows[:2]))
    folder = tmp_path / report["results"]
    before = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    status, report, _ = run("--resume", folder, fresh=False)
    after = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert (status, report["models"][0]["questions"]) == (0, 2)
    assert after[0] == before[0]
    assert (after[1]["question"], after[1]["answer"]) == ("Who is it?", "B")


@pytest.mark.parametrize("fault", ["missing", "other bits"])
def test_what_was_wrong_is_asked_again_once_it_is_mended(run, tmp_path, fault):
    with FeatureStore(tmp_path / "store") as store:
        key = next(key for key in store.keys() if key.video_id == "second")
        record, value = store.record_of(key), store.get(key)
        if fault == "missing":
            store.delete(key)
        else:
            store.put(key, {**value, "vision_features": value["vision_features"].flip(0)}, recipe=record.recipe)
    status, report, _ = run("--model", "small")
    assert (status, len(report["failed"])) == (1, 2)
    with FeatureStore(tmp_path / "store") as store:
        store.put(key, value, recipe=record.recipe)
    folder = tmp_path / report["results"]
    before = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    status, report, _ = run("--resume", folder, fresh=False)
    assert (status, report["failed"], report["models"][0]["hits"]) == (0, [], 6)
    after = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert after[:4] == [answer for answer in before if answer["video_id"] != "second"]
    assert "second" in (folder / "evaluate.log").read_text().partition("WARNING")[2].splitlines()[0]


class TestTheAnswersSoFar:
    @pytest.fixture
    def folder(self, run, tmp_path):
        return tmp_path / run("--model", "small", "--first", "3")[1]["results"]

    @staticmethod
    def keep(folder, data, *rows):
        asked = dict(enumerate(Benchmark(BENCHMARKS["video-mme"], data).questions()))
        ResultsFolder.at(folder, fields=()).keep_answers_to({row: asked[row] for row in rows})

    def test_they_stay_when_the_disk_is_full_as_some_are_dropped(self, folder, tmp_path):
        before = (folder / "answers.jsonl").read_bytes()
        with pytest.raises(StoreWriteError, match=r"answers\.jsonl"), files_of_at_most(len(before) // 3):
            self.keep(folder, tmp_path / "data", 0, 1)
        assert (folder / "answers.jsonl").read_bytes() == before
        self.keep(folder, tmp_path / "data", 0, 1)
        assert (folder / "answers.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
        assert not list(folder.glob(".*"))

    def test_they_are_not_written_again_when_none_is_dropped(self, folder, tmp_path):
        before = (folder / "answers.jsonl").stat()
        self.keep(folder, tmp_path / "data", 0, 1, 2)
        after = (folder / "answers.jsonl").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_a_torn_last_line_is_gone_before_the_next_is_written(self, folder, tmp_path):
        before = (folder / "answers.jsonl").read_bytes()
        (folder / "answers.jsonl").write_bytes(before + before[:20])
        self.keep(folder, tmp_path / "data", 0, 1, 2)
        assert (folder / "answers.jsonl").read_bytes() == before

    def test_a_disk_that_fills_up_meanwhile_is_told_in_words(self, folder, run):
        whole = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "answers.jsonl").write_bytes(whole[0])
        with files_of_at_most(len(whole[0]) + 100):
            status, report, said = run("--resume", folder, fresh=False)
        assert (status, report, "Traceback" in said) == (2, None, False)
        assert "evaluate.log cannot be written" in said
        assert "answers.jsonl cannot be written" in said
        assert run("--resume", folder, fresh=False)[1]["models"][0]["agreeing"] == 3


@contextmanager
def files_of_at_most(size):
    """A disk on which no file may grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_logits_that_are_no_numbers_are_compared_and_reported_in_json_that_every_parser_reads(
    run, tmp_path, monkeypatch
):
    numbers = LongVA_Cached.letter_logits

    def no_numbers(*args, **options):
        return numbers(*args, **options) * torch.tensor([float("nan"), float("inf"), -0.0])

    monkeypatch.setattr(LongVA_Cached, "letter_logits", no_numbers)
    status, report, said = run("--model", "small", "--first", "2")
    assert (status, report["failed"]) == (0, []), said
    folder = tmp_path / report["results"]
    assert json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail) == report
    before = (folder / "answers.jsonl").read_bytes()
    assert run("--resume", folder, fresh=False)[0] == 0
    assert (folder / "answers.jsonl").read_bytes() == before


def test_folders_that_are_called_alike_get_tables_of_their_own(run, tmp_path):
    _, report, _ = run("--model", "small", "--first", "1")
    folder = ResultsFolder.at(tmp_path / report["results"], fields=())
    answer = folder.answers[0]
    folder.asked["models"] = ["/new/LongVA-7B", "/old/LongVA-7B/", "/new/LongVA-7B-uncached"]
    folder.answers = [
        replace(answer, model=model, cached=letter) for model, letter in zip(folder.asked["models"], "ABC", strict=True)
    ]
    folder.write_tables()
    predicted = {
        path.name: openpyxl.load_workbook(path).active.cell(2, 10).value
        for path in folder.path.glob("LongVA-7B*Video-MME.xlsx")
    }
    names = ("LongVA-7B", "LongVA-7B_2", "LongVA-7B-uncached_2")
    assert [predicted[f"{name}_Video-MME.xlsx"] for name in names] == ["A", "B", "C"]
    assert len(predicted) == 6


def test_going_on_is_with_the_same_files_wherever_it_is_done(run, tmp_path, monkeypatch):
    shutil.copy("data/questions.json", "asked.json")
    _, report, _ = run("--model", "small", "--first", "1", "--annotations", "asked.json")
    folder = tmp_path / report["results"]
    asked = json.loads((folder / "evaluate.json").read_text())
    assert Path(asked["annotations"]) == tmp_path / "asked.json"
    monkeypatch.chdir(tmp_path / "data")
    assert run("--resume", folder, fresh=False)[0] == 0
    (folder / "evaluate.json").write_text(json.dumps(asked | {"model_files": [[["config.json", 1, 1]]]}))
    status, _, said = run("--resume", folder, fresh=False)
    assert status == 2
    assert "small has changed since" in said


def test_the_built_in_model_is_meant_where_a_folder_of_its_name_lies_too(run, tmp_path):
    for name in ("small", "small:1"):
        (tmp_path / name).mkdir()
    status, report, said = run("--model", "small", "--model", "small:1", "--first", "1")
    assert (status, [model["model"] for model in report["models"]]) == (0, ["small", "small:1"]), said
    (tmp_path / "small" / "notes.txt").touch()
    assert run("--resume", report["results"], fresh=False)[0] == 0


@pytest.mark.parametrize("line", ["[]", "null", '"text"', "1", "{}"])
def test_a_line_that_is_no_answer_is_asked_again(run, tmp_path, line):
    _, report, _ = run("--model", "small", "--first", "2")
    file = tmp_path / report["results"] / "answers.jsonl"
    first, second = file.read_text().splitlines()
    unhashable = json.dumps(json.loads(first) | {"row": []})
    file.write_text(f"{line}\n{unhashable}\n{second}\n")
    status, again, said = run("--resume", report["results"], fresh=False)
    assert (status, again["models"][0]["answered"]) == (0, 2), said


def test_questions_in_any_characters_are_asked_and_written(run, tmp_path):
    file = tmp_path / "data" / "questions.json"
    row = json.loads(file.read_text())[0] | {
        "question": "\ud800 \x1b[31m \x00 \u2028 \ufffe\uffff 犬",
        "options": ["\udfff", "🎬", "C"],
    }
    file.write_text(json.dumps([row], ensure_ascii=True))
    status, report, said = run("--model", "small")
    assert (status, report["failed"]) == (0, []), said
    (written,) = pyarrow.parquet.read_table(tmp_path / report["results"] / "results.parquet").to_pylist()
    asked = "? \x1b[31m \x00 \u2028 \ufffe\uffff 犬"
    assert (written["question"], written["options"]) == (asked, ["?", "🎬", "C"])
    sheet = openpyxl.load_workbook(tmp_path / report["results"] / "small_Video-MME.xlsx").active
    assert sheet.cell(2, 7).value == "? [31m  \u2028  犬"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model must be given"),
        (["--model", "small", "--model", "small:x"], "small:<number>"),
        (["--model", "small", "--model", "lmms-lab/LongVA-7B"], "package longva"),
        (["--model", "small", "--sampling", "some"], "--sampling"),
        (["--model", "small", "--model", "small"], "named twice"),
        (["--model", "./data", "--model", "data/"], "named twice"),
        (["--model", "small", "--store", "nowhere"], "no folder"),
        (["--model", "small", "--store", "nonsense://nowhere"], "nonsense"),
        (["--model", "lmms-lab/LongVA-7B"], "package longva"),
        (["--model", "small", "--model", "./nosuch/LongVA"], "./nosuch/LongVA is no folder"),
        (["--model", "small", "--dataset", "a/b"], "dataset 'a/b'"),
        (["--model", "small:99999999999999999999"], "18 digits"),
    ],
)
def test_what_cannot_work_is_refused(run, arguments, said, tmp_path):
    status, _, error = run(*arguments)
    assert status == 2
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_a_model_that_cannot_be_loaded_is_reported_beside_the_others(run, monkeypatch):
    def load(name, *args, **options):
        if name == "small:1":
            raise EvaluationError("small:1 cannot be loaded: header too large")
        return LongVA_Cached(name, *args, **options)

    monkeypatch.setattr(evaluate_command, "LongVA_Cached", load)
    status, report, said = run("--model", "small:1", "--model", "small", "--first", "2")
    assert (status, "Traceback" in said) == (1, False)
    assert [(one["model"], one["answered"], one["hits"]) for one in report["models"]] == [
        ("small:1", 0, 0),
        ("small", 2, 2),
    ]
    assert {fault["reason"] for fault in report["failed"]} == {"small:1 cannot be loaded: header too large"}
    monkeypatch.setattr(evaluate_command, "LongVA_Cached", LongVA_Cached)
    assert run("--resume", report["results"], fresh=False)[0] == 0


def test_of_models_that_answered_nothing_the_page_says_why_and_shows_no_figures(run, tmp_path, monkeypatch, capsys):
    def fails(name, *_, **__):
        raise EvaluationError(f"{name} cannot be loaded: header too large")

    monkeypatch.setattr(evaluate_command, "LongVA_Cached", fails)
    _, report, _ = run("--model", "small", "--model", "small:1", "--first", "2")
    page = (tmp_path / report["results"] / "report.html").read_text()
    for name in ("small", "small:1"):
        why = f"the first: {name} cannot be loaded: header too large"
        assert f"{name}: of 2 questions none were answered, so that there are no figures; {why}" in page
    assert re.findall("<h2>(.*?)</h2>", page) == ["What is wrong"]
    assert "<svg" not in page
    assert main(["evaluate", "--resume", report["results"]]) == 1
    assert "%" not in capsys.readouterr().out


def test_names_that_are_no_utf8_are_escaped(run, tmp_path, monkeypatch):
    name = os.fsdecode(b"d\xff")
    shutil.copytree(tmp_path / "data", tmp_path / name)
    (tmp_path / name / "video" / "first.mp4").unlink()
    model = tmp_path / os.fsdecode(b"m\xff")
    model.mkdir()
    monkeypatch.setattr(evaluate_command, "require_backend", lambda _: None)  # it fails when it is loaded
    models = ["--model", "small", "--model", model]
    status, report, said = run(*models, "--data", name, "--results", os.fsdecode(b"r\xff"))
    assert (status, len(report["failed"]), "Traceback" in said) == (1, 2 + 6, False)
    for file in ("report.html", "evaluate.log"):
        written = (tmp_path / report["results"] / file).read_text()
        assert "d\\udcff" in written
        assert "m\\udcff" in written


def test_the_log_escapes_what_a_terminal_would_obey_in_lines_and_tracebacks(run, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\x1b[31m \udcff \u2028犬")

    monkeypatch.setattr(LongVA_Cached, "letter_logits", fails)
    file = tmp_path / "data" / "questions.json"
    row = json.loads(file.read_text())[0]
    file.write_text(json.dumps([{**row, "question_id": "\x1b[32m\nforged"}]))
    _, report, _ = run("--model", "small")
    written = (tmp_path / report["results"] / "evaluate.log").read_text()
    assert "Traceback" in written
    assert "\nRuntimeError: \\x1b[31m \\udcff \\u2028犬\n" in written
    assert "question \\x1b[32m\\nforged about first: RuntimeError: \\x1b[31m" in written
    assert "\x1b" not in written


@pytest.mark.parametrize("content", [None, "[1]", '{"models": []}'])
def test_what_holds_no_evaluation_is_not_gone_on_with(run, content, tmp_path):
    (tmp_path / "older").mkdir()
    if content is not None:
        (tmp_path / "older/evaluate.json").write_text(content)
    status, _, error = run("--resume", "older", fresh=False)
    assert status == 2
    assert "holds no evaluation" in error
    assert "Traceback" not in error


def test_going_on_takes_no_options_that_it_would_ignore(run, tmp_path):
    _, report, _ = run("--model", "small", "--first", "1")
    where = ["--store", "elsewhere", "--results", "results"]
    options = [*where, "--model", "small:7", "--first", "1", "--dtype", "float16", "--nframe", NFRAME]
    status, _, said = run("--resume", report["results"], *options, fresh=False)
    assert status == 2
    assert "--first, --model, --nframe, --dtype, --store, --results" in said
    assert [path.name for path in (tmp_path / "results").iterdir()] == [Path(report["results"]).name]


def test_a_table_that_cannot_be_written_is_told_without_a_traceback(run, tmp_path, monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    _, report, _ = run("--model", "small", "--first", "1")
    (tmp_path / report["results"] / "small_Video-MME.xlsx").unlink()
    (tmp_path / report["results"] / "small_Video-MME.xlsx").mkdir()
    status, _, said = run("--resume", report["results"], fresh=False)
    gc.collect()
    assert (status, "cannot be written" in said, "Traceback" in said, ignored) == (2, True, False, [])
