"""One build with faults: its events account for every unit and agree with its report, and Ray exports its metrics."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from typing import NamedTuple

import pytest

from cache_store import FeatureStore, StepKey
from pipeline.errors import EncoderError
from pipeline.lanes import BuildReport, Progress, run_build
from pipeline.lanes.lane import Lane
from pipeline.lanes.metrics import Metrics
from pipeline.lanes.watch import Watch
from pipeline.lanes.worker import State, Work, Worker
from pipeline.run_events import Event, RunEvents, read_events
from pipeline.unit_done import UnitDone
from pipeline.work_plan import BuildTask, Unit, plan_build
from tests.pipeline.lanes.faulty_encoder import (
    DECODER_RAISES,
    ENCODER_DIES_ONCE,
    ENCODER_RAISES,
    GOOD,
    FaultySource,
    FaultySpec,
)

pytestmark = pytest.mark.usefixtures("local_ray")
FAULTS = [*[GOOD] * 30, DECODER_RAISES, *[GOOD] * 10, ENCODER_RAISES, ENCODER_DIES_ONCE, *[GOOD] * 20]


class Watched(NamedTuple):
    report: BuildReport
    events: list[Event]
    moments: list[Progress]


def build(folder, faults, *, on_progress=None, **options) -> Watched:
    (folder / "marks").mkdir(parents=True)
    store = FeatureStore(folder / "store", run_id="watched")
    task = BuildTask(FaultySpec(folder / "marks", **options), str(store.root), "watched")
    plan = plan_build(FaultySource(folder / "images", faults), task, store, overwrite=False)
    file = folder / "run.jsonl"

    def write(lines):
        with open(file, "a") as opened:
            opened.write(lines)

    moments = []
    try:
        events = RunEvents(write, about={"host": "here"})
        told = on_progress or moments.append
        report = run_build(plan, store, lanes=2, begin=lambda: events, dataset="blocks", on_progress=told)
    except (EncoderError, KeyboardInterrupt):
        report = BuildReport()
    return Watched(report, list(read_events(file)), moments)


@pytest.fixture(scope="module")
def watched(local_ray, tmp_path_factory):
    return build(tmp_path_factory.mktemp("watched"), FAULTS, most_delay_s=0.05)


def named(watched, name):
    return [event.fields for event in watched.events if event.name == name]


def test_every_unit_has_one_end(watched):
    report = watched.report
    assert (report.done, len(report.failed)) == (len(FAULTS) - 2, 2)
    ends = Counter(event.fields["key"] for event in watched.events if event.name in ("unit", "present", "failed"))
    assert ends == Counter(f"episode_1_vlm{number}" for number in range(len(FAULTS)))
    assert {fields["key"] for fields in named(watched, "failed")} == {failure.key for failure in report.failed}
    assert {fields["lane"] for fields in named(watched, "failed")} <= {"lane 0", "lane 1"}


def test_the_totals_are_those_of_the_report(watched):
    report, units = watched.report, named(watched, "unit")
    (end,) = named(watched, "end")
    whole = report.to_json()
    assert {name: end[name] for name in whole if name not in ("failed", "ignored")} == {
        name: whole[name] for name in whole if name not in ("failed", "ignored")
    }
    assert end["failed"] == 2
    assert sum(fields["bytes"] for fields in units) == report.bytes
    assert len(named(watched, "lost")) == report.restarts >= 1
    encode_s = sum(fields["encode"][1] - fields["encode"][0] for fields in units if "encode" in fields)
    assert encode_s == pytest.approx(report.stage_seconds.encode, abs=0.0002 * len(units))


def test_times_are_in_order_and_attempts_are_counted(watched):
    *before, end = watched.events
    assert (before[0].name, end.name) == ("start", "end")
    assert end.at_s >= watched.report.seconds - 0.0001  # rounded; the processes are ended after the last unit
    for event in before:
        assert event.at_s <= watched.report.seconds + 0.0001
        if event.name == "unit" and "encode" in event.fields:
            begin_s, end_s = event.fields["decode"]
            assert 0 <= begin_s <= end_s <= event.at_s
            begin_s, end_s = event.fields["encode"]
            assert 0 <= begin_s <= end_s <= event.at_s
    attempts = {fields["key"].removeprefix("episode_1_vlm"): fields["attempts"] for fields in named(watched, "unit")}
    assert attempts["0"][0] == 1
    assert attempts["42"][1] > 1


def test_processes_tell_where_they_came_up_and_that_they_came_back(watched):
    (start,) = named(watched, "start")
    assert (start["lanes"], start["todo"], start["host"]) == (2, len(FAULTS), "here")
    ready = named(watched, "ready")
    assert {(fields["lane"], fields["process"]) for fields in ready} >= {
        (f"lane {lane}", process) for lane in range(2) for process in ("encoder", "decoder")
    }
    assert all(fields["host"] and fields["device"] == "cpu" for fields in ready)
    for lost in named(watched, "lost"):
        assert (lost["process"], lost["host"]) == ("encoder", ready[0]["host"])
        assert "ActorDiedError" in lost["reason"] or "ActorUnavailableError" in lost["reason"]
    assert {fields["lane"] for fields in named(watched, "decoders")} == {"lane 0", "lane 1"}


def test_progress_has_the_pace_of_the_lanes_and_the_time_left(watched):
    last = watched.moments[-1]
    assert sum(lane.done for lane in last.lanes) == watched.report.done
    assert any(lane.decoded_per_s > 0 and lane.encoded_per_s > 0 and lane.written_per_s > 0 for lane in last.lanes)
    assert all(0 <= lane.busy_share <= 1 for moment in watched.moments for lane in moment.lanes)
    assert any(moment.seconds_left for moment in watched.moments)
    assert last.seconds_left == 0


def exported(run):
    """The metrics of one run as Prometheus would scrape them, added up over lanes, by name and stage."""
    import ray

    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    found = Counter()
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    except OSError as exc:
        return Counter({str(exc): 1})  # Ray's exporter comes up beside the cluster
    for line in text.splitlines():
        if line.startswith("ray_vlm_cache_") and f'run="{run}"' in line and 'dataset="blocks"' in line:
            name = re.sub(r'^ray_vlm_cache_(\w+).*?(,stage="\w+")?}.*', r"\1\2", line)
            found[name] += float(line.rpartition(" ")[2])
    return found


def test_ray_exports_the_metrics_for_prometheus(watched):
    report = watched.report
    timed = sum("encode" in fields for fields in named(watched, "unit"))  # the others went down with their process
    wanted = {
        "units_built_total": report.done,
        "bytes_written_total": report.bytes,
        "process_restarts_total": report.restarts,
        'units_failed_total,stage="decode"': 1,
        'units_failed_total,stage="encode"': 1,
        'stage_seconds_count,stage="encode"': timed,
        'stage_seconds_count,stage="write"': timed,
    }
    ends = ("units_left", "queue_bytes", "busy_share")
    until = time.monotonic() + 180  # Ray exports every so often, one metric after the other
    found = exported("watched")
    while not (found.items() >= wanted.items()) or any(found[name] for name in ends):
        assert time.monotonic() < until, f"not all of the metrics came: {found}, not {wanted}"
        time.sleep(0.2)
        found = exported("watched")
    assert found['stage_seconds_count,stage="decode"'] >= report.done
    assert [name for name in ends if name not in found] == []


def test_a_unit_of_a_lost_process_has_no_time_of_encoding_and_one_of_another_lanes_decoder_says_so():
    lines = []
    events = RunEvents(lines.append)
    watch = Watch(events, Metrics(dataset="blocks", run="alone"))
    here, other = (Lane(f"lane {number}", Worker(None, "encode", 3)) for number in range(2))
    work = Work(Unit("a", StepKey("a", 0), None))
    watch.decoded(other, work, 0.0)
    watch.built(here, work, UnitDone("a", 10), by_lost_process=True)
    watch.built(here, work, UnitDone("a", 10, 0.0, 0.0))
    events.flush()
    lost, found = (json.loads(line) for line in lines[0].splitlines())
    assert (lost["by_lost_process"], "encode" in lost, lost["lane"], lost["decode_lane"]) == (
        True,
        False,
        "lane 0",
        "lane 1",
    )
    assert "encode" in found
    assert "by_lost_process" not in found


def test_of_all_the_calls_that_die_with_a_process_one_says_so():
    lines = []
    events = RunEvents(lines.append)
    watch = Watch(events, Metrics(dataset="blocks", run="alone"))
    worker = Worker(None, "encode", 3, state=State.READY)
    for _ in range(3):
        watch.lost(Lane("lane 0", worker), worker, "it died")
        worker.died()
    events.flush()
    (lost,) = (json.loads(line) for line in lines[0].splitlines())
    assert (lost["event"], lost["process"], lost["reason"]) == ("lost", "encoder", "it died")


def test_an_error_that_ends_the_build_is_an_event(tmp_path):
    refused = build(tmp_path, [GOOD], loads=False)
    (error,) = named(refused, "error")
    assert "this model never loads" in error["reason"]


def test_an_interrupt_has_a_name_and_no_message(tmp_path):
    def interrupt(progress):
        raise KeyboardInterrupt

    (error,) = named(build(tmp_path, [GOOD], on_progress=interrupt), "error")
    assert error["reason"] == "KeyboardInterrupt"


def test_a_build_with_nothing_to_do_has_a_start_and_an_end(tmp_path):
    watched = build(tmp_path, [])
    assert [event.name for event in watched.events] == ["start", "end"]
