"""`report` draws any run: finished, killed, empty, huge, hostile; a page is one file that loads nothing."""

from __future__ import annotations

import json
import random
from argparse import Namespace

import pytest

pytest.importorskip("matplotlib")

from jobs.__main__ import main
from jobs.run_files import dead_letters
from jobs.run_folder import RunFolder
from jobs.run_summary import SLOWEST, read_run
from jobs.run_timeline import MOST_UNITS, STEPS, Timeline
from tests.jobs.test_stats_page import Page
from tests.media import write_video


def unit(number, at_s, **changes):
    fields = {"key": f"video_{number}", "lane": f"lane {number % 2}", "bytes": 1000, "attempts": [1, 1]}
    spans = {"decode": [at_s - 3.0, at_s - 2.0], "encode": [at_s - 1.5, at_s - 0.5]}
    return {"event": "unit", "t": at_s, **fields, **spans, **changes}


def failed(number, at_s, **changes):
    letter = {
        "key": f"bad_{number}",
        "stage": "decode",
        "error": "bad media",
        "reason": "odd",
        "attempts": 1,
        "host": "h",
    }
    return {"event": "failed", "t": at_s, **letter, "lane": "lane 0", **changes}


def beginning(todo):
    process = {"process": "encoder", "host": "node", "device": "cuda:0", "restarts": 0}
    return [
        {"event": "start", "t": 0.0, "time": 1.7e9, "todo": todo, "skipped": 2, "lanes": 2},
        *({"event": "ready", "t": 4.0, "lane": f"lane {lane}", **process} for lane in range(2)),
        *({"event": "decoders", "t": 4.0, "lane": f"lane {lane}", "added": 1, "decoders": 1} for lane in range(2)),
    ]


@pytest.fixture
def run(tmp_path):
    """Write a run's folder from its events; the dead letters are those of its failures."""

    def write(events, *, report=None, tail=""):
        asked = {"arguments": {"data": "/data/set", "encoder": "longva", "model": "small"}, "versions": {"ray": "2"}}
        (tmp_path / "build.json").write_text(json.dumps(asked))
        (tmp_path / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
        letters = [json.dumps(event) + "\n" for event in events if event.get("event") == "failed"]
        (tmp_path / "failed.jsonl").write_text("".join(letters))
        if report is not None:
            (tmp_path / "report.json").write_text(json.dumps(report))
        return tmp_path

    return write


@pytest.fixture
def page(capsys):
    """Write a run's page; returns it as text and as a browser takes it, and what was printed."""

    def write(folder, *options):
        assert main(["report", str(folder), *options]) == 0
        text = (folder / "report.html").read_text()
        seen = Page(text)
        assert (seen.links, "script" in seen.tags) == ([], False)
        assert len(set(seen.ids)) == len(seen.ids)
        assert all(seen.plots)
        return text, seen, capsys.readouterr()

    return write


def small_run(count=20):
    return [*beginning(count + 3), *(unit(n, 6.0 + n / 2) for n in range(count)), failed(0, 7.0), failed(1, 8.0)]


def test_a_finished_run_has_every_part(run, page):
    totals = {"done": 20, "not_started": 1, "seconds": 17.0, "stopped": "stopped by SIGTERM", "warning": "split"}
    events = [*small_run(), {"event": "lost", "t": 9.0, "lane": "lane 1", "process": "encoder", "reason": "died so"}]
    text, seen, said = page(run(events, report=totals))
    assert len(seen.plots) == 4  # timeline, throughput, shares, failures
    for words in ("Timeline", "Throughput", "Where the time went", "Lanes", "Failures", "Slowest units", "died so"):
        assert words in text
    for words in ("Stopped early: stopped by SIGTERM", "split", "bad_0", "video_19", "a process died"):
        assert words in text
    assert "20 built, 2 skipped" in said.out
    assert "2 failed, 1 not started" in said.out
    assert "wrote" in said.err


def test_figures_as_json_without_a_page(run, capsys):
    folder = run(small_run(), report={"not_started": 1, "seconds": 17.0})
    assert main(["report", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (folder / "report.html").exists()
    assert (found["done"], found["skipped"], found["failed"], found["not_started"]) == (20, 2, 2, 1)
    assert found["failures"] == [{"stage": "decode", "error": "bad media", "units": 2}]
    # From the encoders' readiness at 4 s to the last unit at 15.5 s; each unit keeps one of two encoders for a second.
    assert found["units_per_s"] == pytest.approx(20 / 11.5)
    assert found["bare_units_per_s"] == pytest.approx(2.0)
    assert found["share_of_bare"] == pytest.approx(20 / 11.5 / 2)
    first = found["lanes"][0]
    assert (first["units"], first["decode_s"], first["encode_s"], first["write_s"]) == (10, 10.0, 10.0, 5.0)
    assert first["busy_share"] == pytest.approx(10 / 11.5)
    assert len(found["slowest"]) == SLOWEST
    assert main(["report", str(folder), "--json", "--bare", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["bare_units_per_s"] == 8.0


def test_the_folder_of_a_killed_build_shows_what_was_known(run, page):
    text, _, said = page(run(small_run(), tail='{"event":"unit","t":99.0,"key":"to'))
    assert "No end: the build is at work, or was killed. What is shown ends 15.5 s in." in text
    assert "2 failed, 1 not ended" in said.out
    assert "cannot be read" not in text


def test_lines_that_cannot_be_read_are_counted(run, page):
    odd = [{"event": "unit", "t": 3.0}, {"event": "unit", "t": 3.0, "lane": 7, "bytes": 1}, {"event": "failed", "t": 1}]
    text, _, _ = page(run([*small_run(), *odd], tail="\x00\x00\n"))
    assert "4 lines of the events cannot be read" in text


@pytest.mark.parametrize("events", [[], beginning(5)[:1], beginning(5), [*beginning(5), failed(0, 5.0)]])
def test_a_run_that_built_nothing_has_a_page(run, page, events):
    text, seen, _ = page(run(events))
    assert "Timeline" not in text
    assert len(seen.plots) == (1 if len(events) > 5 else 0)


def test_an_error_and_what_a_lost_process_wrote_are_told(run, page):
    lost = unit(1, 9.0, by_lost_process=True, encode=None)
    folder = run([*beginning(2), lost, {"event": "error", "t": 9.0, "reason": "EncoderError: <no> weights"}])
    text, _, _ = page(folder)
    assert "Ended by an error: EncoderError: &lt;no&gt; weights" in text
    assert read_run(folder).lanes["lane 1"].encode_s == 0.0


def test_a_unit_that_another_lane_decoded_counts_there(run):
    lanes = read_run(run([*beginning(1), unit(0, 9.0, decode_lane="lane 1")])).lanes
    assert (lanes["lane 0"].decode_s, lanes["lane 0"].encode_s) == (0.0, 1.0)
    assert (lanes["lane 1"].decode_s, lanes["lane 1"].encode_s) == (1.0, 0.0)


def test_hostile_names_are_only_text(run, page):
    name = "<script>alert(1)</script>\x1b$x$\udce9"
    events = [*beginning(2), unit(0, 6.0, key=name, lane=name), failed(0, 7.0, key=name, reason=name, error=name)]
    text, _, _ = page(run(events))
    assert "\x1b" not in text


def test_a_large_run_is_thinned_out(run, page):
    clock = random.Random(5)
    units = [unit(n, 10 + n / 40 + clock.random(), lane=f"lane {n % 40}") for n in range(12_000)]
    small, _, _ = page(run(small_run(MOST_UNITS)))
    text, _, _ = page(run([*beginning(12_000), *units, *(failed(n, 20.0) for n in range(3000))]))
    assert "one bar for each unit" in small
    assert "too many units for a bar each" in text
    assert "the first 16 of 40 lanes" in text
    assert "and 2,500 more" in text
    assert len(text) < 2_000_000


def test_shares_of_time_add_up_to_the_seconds_of_the_bars():
    timeline = Timeline(100.0)
    spans = [(0.0, 0.1), (5.0, 25.0), (99.0, 120.0), (50.0, 50.0)]
    for begin_s, end_s in spans:
        timeline.add("lane 0", "encode", begin_s, end_s)
    assert timeline.shares("lane 0", "encode").sum() * 100.0 / STEPS == pytest.approx(21.1)
    assert timeline.shares("lane 0", "decode").sum() == 0


def test_units_over_time_are_all_counted():
    timeline = Timeline(60.0)
    for number in range(100):
        timeline.add_unit(number * 0.6)
    borders, rates = timeline.rates()
    assert sum(rate * (borders[1] - borders[0]) for rate in rates) == pytest.approx(100)
    assert borders[-1] == pytest.approx(60.0)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_holds_no_run_is_refused(tmp_path, capsys, options):
    assert main(["report", str(tmp_path), *options]) == 2
    assert "holds no events of a build" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_refused(run, tmp_path, capsys):
    assert main(["report", str(run(small_run())), "--html", str(tmp_path / "gone" / "page.html")]) == 2
    assert "--html FILE" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "fast"])
def test_a_rate_that_is_none_is_refused(tmp_path, rate, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--bare", rate])
    assert "no number above 0" in capsys.readouterr().err


def test_what_an_earlier_run_left_in_the_folder_is_not_this_runs_end(run):
    folder = run(small_run(), report={"not_started": 0, "seconds": 1e9})
    events = RunFolder(folder).begin(Namespace(model="small", nframe=4), {"encoder": "x"})
    events.start(todo=3, skipped=0)
    summary = read_run(folder)
    assert (summary.is_finished, summary.todo, summary.built, summary.failed) == (False, 3, 0, 0)
    assert list(dead_letters(folder)) == []
    assert summary.build["arguments"] == {"model": "small", "nframe": 4}


@pytest.mark.usefixtures("local_ray")
def test_a_real_build_is_drawn_as_its_report_says(tmp_path, capsys, page):
    for number in range(4):
        write_video(tmp_path / "videos" / f"clip_{number}.mp4", seed=number)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    folder = tmp_path / "run"
    options = ["--source", "folder", "--encoder", "longva", "--model", "small", "--nframe", "4", "--lanes", "2"]
    where = ["--data", str(tmp_path / "videos"), "--store", str(tmp_path / "store"), "--report", str(folder), "--json"]
    assert main(["build", *options, *where]) == 1
    report = json.loads(capsys.readouterr().out)
    assert main(["report", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("done", "skipped", "not_started", "bytes", "seconds", "restarts"):
        assert found[name] == report[name], name
    assert (found["finished"], found["failed"], found["todo"], found["unreadable_lines"]) == (True, 1, 5, 0)
    assert sorted(unit["key"] for unit in found["slowest"]) == [f"clip_{number}" for number in range(4)]
    text, seen, _ = page(folder)
    assert len(seen.plots) == 4
    assert "broken.mp4" in text
