"""A build leaves its dead letters on disk, and `retry-failed` builds exactly those again, or refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path

import pytest

from cache_store.naming import RUNS
from jobs import build_command, run_folder
from jobs.__main__ import main
from jobs.run_files import read_failed
from pipeline.errors import BuildRefused, EncoderError
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes import BuildReport
from tests.media import write_new_episode, write_video

KEEP = ["--source", "folder", "--encoder", "longva", "--model", "small", "--nframe", "4"]


@pytest.fixture(scope="module")
def broken(local_ray, tmp_path_factory):
    """A build of two good videos and two broken ones; returns its base folder, left as it is by every test."""
    base = tmp_path_factory.mktemp("broken")
    for number in range(2):
        write_video(base / "videos" / f"good_{number}.mp4", seed=number)
        (base / "videos" / f"bad_{number}.mp4").write_bytes(b"no video")
    assert main(["build", *KEEP, "--data", str(base / "videos"), "--store", str(base / "store")]) == 1
    return base


@pytest.fixture
def base(broken, tmp_path):
    """A copy of it."""
    copy = Path(shutil.copytree(broken, tmp_path / "copy"))
    asked = _run(copy) / "build.json"
    asked.write_text(asked.read_text().replace(str(broken), str(copy)))
    return copy


def _run(base: Path) -> Path:
    (folder,) = (base / "store" / RUNS).iterdir()
    return folder


def _letters(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]


def test_each_failed_unit_is_a_dead_letter_in_the_stores_own_folder(base):
    letters = _letters(_run(base))
    assert {letter["key"] for letter in letters} == {"bad_0", "bad_1"}
    for letter in letters:
        assert (letter["stage"], letter["error"], letter["attempts"]) == ("decode", "bad media", 1)
        assert letter["reason"]
        assert letter["host"]
        assert len(letter["recipe"]) == 64
        assert {"vlm-cache", "torch", "ray", "python"} <= letter["versions"].keys()
    assert json.loads((_run(base) / "report.json").read_text())["done"] == 2
    assert json.loads((_run(base) / "build.json").read_text())["arguments"]["nframe"] == 4


def test_only_what_failed_is_built_again(base, capsys, monkeypatch, tmp_path):
    letters = _run(base) / "failed.jsonl"
    write_video(base / "videos" / "bad_0.mp4", seed=7)
    write_video(base / "videos" / "new.mp4", seed=8)
    (base / "store" / "videos").rename(tmp_path / "elsewhere")  # so that the good ones are missing too
    assert main(["retry-failed", str(letters), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], report["skipped"], [f["key"] for f in report["failed"]]) == (1, 0, ["bad_1"])

    write_video(base / "videos" / "bad_1.mp4", seed=9)
    monkeypatch.chdir(tmp_path)
    assert main(["retry-failed", report["folder"], "--report", "mended"]) == 0
    assert len(list((base / "store" / "videos").glob("*.pt"))) == 2
    assert "1 built" in capsys.readouterr().out
    assert sorted(path.name for path in Path("mended").iterdir()) == [
        "build.json",
        "failed.jsonl",
        "report.json",
        "run.jsonl",
    ]
    assert main(["retry-failed", "mended"]) == 0
    assert "no failed units" in capsys.readouterr().err


@pytest.mark.parametrize("spelled", ["run", "letters", "link"])
def test_a_report_where_the_dead_letters_are_is_refused(base, spelled, capsys, tmp_path):
    run = _run(base)
    (tmp_path / "link").symlink_to(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    asked, report = {"run": (run, run), "letters": (run / "failed.jsonl", run), "link": (run, tmp_path / "link")}[
        spelled
    ]
    assert main(["retry-failed", str(asked), "--report", str(report)]) == 2
    assert "dead letters that are retried" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_stopped_retry_leaves_the_dead_letters_and_names_their_folder(base, capsys, monkeypatch, tmp_path):
    letters = (_run(base) / "failed.jsonl").read_bytes()

    def stopped(plan, store, **more):
        return BuildReport(not_started=plan.todo, stopped="stopped by SIGINT")

    monkeypatch.setattr(build_command, "run_build", stopped)
    assert main(["retry-failed", str(_run(base)), "--report", str(tmp_path / "again")]) == 1
    said = capsys.readouterr().err
    assert "2 of the units that had failed were not started" in said
    assert f"vlm-cache retry-failed {_run(base)}" in said
    assert (_run(base) / "failed.jsonl").read_bytes() == letters


def test_a_run_without_failures_is_done_and_reports_nothing(base, capsys):
    (_run(base) / "failed.jsonl").write_text("")
    assert main(["retry-failed", str(_run(base)), "--json"]) == 0
    report, finished = json.loads(capsys.readouterr().out), json.loads((_run(base) / "report.json").read_text())
    assert report.keys() == finished.keys() | {"folder"}
    assert (report["done"], report["failed"], report["folder"]) == (0, [], None)


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_run_in_a_store_that_was_moved_or_copied_is_refused(base, capsys, how, tmp_path):
    shutil.copytree(base / "store", tmp_path / "elsewhere")
    if how == "moved":
        shutil.rmtree(base / "store")
    (run,) = (tmp_path / "elsewhere" / RUNS).iterdir()
    assert main(["retry-failed", str(run)]) == 2
    said = capsys.readouterr().err
    assert "is no longer there" in said if how == "moved" else "lies in another store" in said
    assert (base / "store").exists() == (how == "copied")


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        pytest.param("store", "memory://x/y", "is seen by one process alone", id="a store in memory"),
        pytest.param("dtype", "float32", "changed since that run", id="another recipe"),
    ],
)
def test_a_run_that_asked_for_what_cannot_be_built_again_is_refused(base, capsys, argument, value, said):
    build = _run(base) / "build.json"
    asked = json.loads(build.read_text())
    asked["arguments"][argument] = value
    build.write_text(json.dumps(asked))
    assert main(["retry-failed", str(build.parent)]) == 2
    assert said in capsys.readouterr().err


def test_another_recipe_of_one_unit_is_refused_by_its_name(base, capsys):
    letters = _run(base) / "failed.jsonl"
    first, second = letters.read_text().splitlines()
    letters.write_text(first + "\n" + json.dumps({**json.loads(second), "recipe": "0" * 64}) + "\n")
    assert main(["retry-failed", str(letters)]) == 2
    assert json.loads(second)["key"] in capsys.readouterr().err


def test_a_failed_unit_that_is_gone_is_named(base, capsys):
    (base / "videos" / "bad_1.mp4").unlink()
    assert main(["retry-failed", str(_run(base))]) == 2
    assert "bad_1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["no json\n", "{}\n", "[]\n"])
def test_what_are_no_dead_letters_is_refused(base, content, capsys):
    (_run(base) / "failed.jsonl").write_text(content)
    assert main(["retry-failed", str(_run(base))]) == 2
    assert "dead letters" in capsys.readouterr().err
    assert main(["retry-failed", str(base / "gone")]) == 2


@pytest.mark.parametrize("change", [{"store": ""}, {"store": 3}, {"data": None}, {"micro_batch": ...}])
def test_a_run_of_other_arguments_than_todays_is_refused(base, change, capsys):
    path = _run(base) / "build.json"
    asked = json.loads(path.read_text())
    changed = {name: value for name, value in {**asked["arguments"], **change}.items() if value is not ...}
    path.write_text(json.dumps({**asked, "arguments": changed}))
    assert main(["retry-failed", str(path.parent)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_dead_letters_are_on_disk_before_the_build_ends_and_a_full_disk_stops_nothing(tmp_path, capsys):
    folder = run_folder.RunFolder(tmp_path / "run")
    folder.note(UnitFailure("a", "decode", "odd", ErrorClass.BAD_MEDIA))
    assert [letter["key"] for letter in _letters(tmp_path / "run")] == ["a"]
    (tmp_path / "file").touch()
    unwritable = run_folder.RunFolder(tmp_path / "file" / "run")
    for _ in range(3):
        unwritable.note(UnitFailure("a", "decode", "odd", ErrorClass.BAD_MEDIA))
    assert capsys.readouterr().err.count("could not be written") == 1


def test_old_runs_are_forgotten_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "RUNS_KEPT", 3)
    for number in range(5):
        path = tmp_path / RUNS / f"{number:032x}"
        path.mkdir(parents=True)
        os.utime(path, (number, number))
    (tmp_path / RUNS / "mine").mkdir()
    run_folder.RunFolder.in_store(tmp_path, "f" * 32)
    assert sorted(path.name[-4:] for path in (tmp_path / RUNS).iterdir()) == ["0003", "0004", "mine"]


def test_a_run_whose_files_grew_lately_is_forgotten_only_with_its_report(tmp_path, monkeypatch):
    """A build that is at work appends to its files, which leaves the folder's own time as it was."""
    monkeypatch.setattr(run_folder, "RUNS_KEPT", 1)
    now_s = time.time()
    for name, names, age_s in (
        ("a", ["build.json", "run.jsonl"], 3600),
        ("b", ["build.json", "run.jsonl", "report.json"], 0),
        ("c", ["build.json", "run.jsonl"], 3 * 86400),
    ):
        folder = tmp_path / RUNS / (name * 32)
        folder.mkdir(parents=True)
        for file in names:
            (folder / file).touch()
            os.utime(folder / file, (1, 1))
        os.utime(folder / "run.jsonl", (now_s - age_s, now_s - age_s))
        os.utime(folder, (1, 1))
    run_folder.RunFolder.in_store(tmp_path, "f" * 32)
    assert [path.name[0] for path in (tmp_path / RUNS).iterdir()] == ["a"]


def test_the_run_used_last_is_kept_whenever_its_folder_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "RUNS_KEPT", 2)
    for name, folder_s, file_s in (("a", 1, 9), ("b", 5, 5)):
        folder = tmp_path / RUNS / (name * 32)
        folder.mkdir(parents=True)
        (folder / "report.json").touch()
        os.utime(folder / "report.json", (file_s, file_s))
        os.utime(folder, (folder_s, folder_s))
    run_folder.RunFolder.in_store(tmp_path, "f" * 32)
    assert [path.name[0] for path in (tmp_path / RUNS).iterdir()] == ["a"]


def test_a_folder_that_is_used_again_keeps_nothing_of_the_earlier_run(tmp_path):
    written = ("build.json", "failed.jsonl", "run.jsonl", "report.json", "report.html", "questions.parquet")
    for name in (*written, "notes.txt"):
        (tmp_path / name).write_text("earlier")
    with closing(run_folder.RunFolder.asked_for(tmp_path)) as folder:
        folder.begin(Namespace(model="small"), {"encoder": "x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.json", "failed.jsonl", "notes.txt", "run.jsonl"]
    assert "earlier" not in "".join((tmp_path / name).read_text() for name in written[:3])


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_a_name_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path, end):
    folder = run_folder.RunFolder(tmp_path)
    folder.begin(Namespace(model="small"), {})
    folder.note(UnitFailure(f"a{end}b", "decode", "odd", ErrorClass.BAD_MEDIA))
    assert list(read_failed(tmp_path).recipes) == [f"a{end}b"]
    letters = tmp_path / "failed.jsonl"
    letters.write_text(json.dumps(json.loads(letters.read_text()), ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_failed(tmp_path).recipes) == [f"a{end}b"]


def test_the_small_model_is_asked_for_again_also_where_a_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "mine"):
        (tmp_path / name).mkdir()
        run_folder.RunFolder(tmp_path / "run").begin(Namespace(model=name), {})
        asked = read_failed(tmp_path / "run").arguments["model"]
        assert asked == {"small": "small", "mine": str(tmp_path / "mine")}[name]


def test_a_folder_that_a_build_writes_to_is_refused_until_that_build_ends(tmp_path):
    with closing(run_folder.RunFolder.asked_for(tmp_path)) as first:
        first.begin(Namespace(model="small"), {})
        first.note(UnitFailure("a", "decode", "odd", ErrorClass.BAD_MEDIA))
        with pytest.raises(BuildRefused, match="a build at work writes to"):
            run_folder.RunFolder.asked_for(tmp_path)
        first.note(UnitFailure("b", "decode", "odd", ErrorClass.BAD_MEDIA))
    assert [letter["key"] for letter in _letters(tmp_path)] == ["a", "b"]
    run_folder.RunFolder.asked_for(tmp_path).close()


def test_a_killed_build_does_not_keep_its_folder(tmp_path):
    script = "import os, sys; from pathlib import Path; from jobs.run_folder import RunFolder; "
    script += f"folder = RunFolder.asked_for(Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / "failed.jsonl").exists()
    run_folder.RunFolder.asked_for(tmp_path).close()


def test_a_folder_on_a_file_system_without_locks_is_taken(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    run_folder.RunFolder.asked_for(tmp_path).close()


def test_a_build_that_is_refused_or_fails_gives_its_folder_back(tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "videos" / "a.mp4")

    def fail(*_args, **_more):
        raise EncoderError("no such weights")

    monkeypatch.setattr(build_command, "run_build", fail)
    where = ["--data", str(tmp_path / "videos"), "--store", str(tmp_path / "store"), "--report", str(tmp_path / "run")]
    for _ in range(2):
        assert main(["build", *KEEP, *where]) == 2
        assert "no such weights" in capsys.readouterr().err


def test_of_an_episode_that_could_not_be_read_all_steps_are_built(tmp_path, capsys, local_ray):
    episodes = tmp_path / "peg_task"
    write_new_episode(episodes / "episode_1", poses=100)
    write_new_episode(episodes / "episode_2", poses=100)
    metadata = episodes / "episode_2" / "metadata.json"
    whole = metadata.read_text()
    metadata.write_text("{")
    where = ["--source", "vla", "--data", str(episodes), "--encoder", "qwen2_5_vl", "--model", "small"]
    arguments = ["build", *where, "--store", str(tmp_path / "store"), "--report", str(tmp_path / "report"), "--json"]
    assert main(arguments) == 1
    first = json.loads(capsys.readouterr().out)
    assert [(one["key"].rpartition("_vlm")[0], one["stage"]) for one in first["failed"]] == [("episode_2", "source")]
    metadata.write_text(whole)
    assert main(["retry-failed", str(tmp_path / "report"), "--report", str(tmp_path / "again"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["done"], again["skipped"]) == (first["done"], 0)
