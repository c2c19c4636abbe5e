"""The build's loop with real processes that fail in every way: nothing is lost, and only the culprit is named."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from cache_store import FeatureStore, StepKey
from cache_store.naming import JOURNALS
from pipeline.errors import EncoderError
from pipeline.lanes import BuildReport, run_build
from pipeline.work_plan import SHARD_UNITS, BuildTask, plan_build
from tests.pipeline.lanes.faulty_encoder import (
    ENCODER_WAITS_TO_BE_KILLED,
    GOOD,
    FaultySource,
    FaultySpec,
)

pytestmark = pytest.mark.usefixtures("local_ray")


class Bench:
    """A source, a store and a spec in one folder, and a way to build them."""

    def __init__(self, folder: Path, faults: list[int], *, limit_bytes: int | None = None, **spec) -> None:
        (folder / "marks").mkdir()
        self.marks = folder / "marks"
        self.source = FaultySource(folder / "images", faults)
        self.store = FeatureStore(folder / "store", limit_bytes=limit_bytes, run_id="test")
        self.task = BuildTask(FaultySpec(self.marks, **spec), str(self.store.root), "test")

    def build(self, **options) -> BuildReport:
        plan = plan_build(self.source, self.task, self.store, overwrite=False)
        return run_build(plan, self.store, **options)

    def names(self) -> list[int]:
        return sorted(key.vlm_idx for key in self.store.keys())


@pytest.fixture
def bench(tmp_path):
    benches = []

    def make(faults: list[int], **options) -> Bench:
        benches.append(Bench(tmp_path, faults, **options))
        return benches[-1]

    yield make
    for made in benches:
        assert made.store.verify().problems == []


def test_every_sample_gets_its_feature(bench):
    made = bench([GOOD] * 150)
    report = made.build()
    assert (report.done, report.skipped, report.failed, report.not_started) == (150, 0, [], 0)
    assert made.names() == list(range(150))
    assert report.exit_status == 0


def test_what_a_build_returns_from_has_been_closed(bench):
    """What a process wrote while it was being ended would change a store that somebody already looks at."""
    made = bench([GOOD] * 20)
    made.build(decoders_per_lane=2)
    kinds = [path.read_text().splitlines()[-1][0] for path in (made.store.root / JOURNALS).iterdir()]
    assert sorted(kinds)[:-1] == ["c"] * (len(kinds) - 1)  # the last is this process's own
    assert len(kinds) > 2


def test_a_second_build_skips_everything_and_does_not_start_lanes(bench):
    made = bench([GOOD] * 5)
    made.build()
    moments = []
    report = made.build(on_progress=moments.append)
    assert (report.done, report.skipped) == (0, 5)
    assert moments == []


def test_an_encoder_killed_in_the_middle_from_outside_loses_and_repeats_nothing(bench):
    made = bench([GOOD] * 4 + [ENCODER_WAITS_TO_BE_KILLED] + [GOOD] * 4)

    def kill_when_it_waits() -> None:
        mark = made.marks / "4"
        while not mark.exists():
            time.sleep(0.01)
        os.kill(int(mark.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_waits, daemon=True)
    killer.start()
    report = made.build()
    killer.join()
    assert (report.done, report.failed, report.not_started) == (9, [], 0)
    assert made.names() == list(range(9))


def test_a_model_that_does_not_load_is_an_error_with_its_own_words(bench):
    made = bench([GOOD], loads=False)
    with pytest.raises(EncoderError, match="this model never loads"):
        made.build()


def test_a_full_store_stops_the_build_and_counts_the_rest_as_not_started(bench):
    first = bench([GOOD] * 1)
    first.build()
    one_file = first.store.stats().bytes
    made_store = FeatureStore(first.store.root, limit_bytes=one_file * 3 + 10, run_id="test")
    first.store = made_store
    first.source = FaultySource(first.marks.parent / "more", [GOOD] * 30)
    report = first.build()
    assert report.exit_status == 1
    assert "limit" in report.stopped
    assert report.done + len(report.failed) + report.not_started + report.skipped == 30
    assert report.not_started > 0
    assert made_store.contains(StepKey("episode_1", 0))


class Torn:
    """A source that lacks one of its samples when it is read again."""

    def __init__(self, source: FaultySource, missing: int) -> None:
        self._samples, self._missing, self._readings = list(source), missing, 0

    def __iter__(self):
        self._readings += 1
        return (one for number, one in enumerate(self._samples) if self._readings == 1 or number != self._missing)

    def ignored(self):
        return []


def test_a_source_that_changes_under_way_stops_the_build_and_the_next_one_goes_on(bench):
    made = bench([])
    whole = FaultySource(made.marks.parent / "whole", [GOOD] * 200, episode_steps=8)
    made.source = Torn(whole, missing=120)
    report = made.build()
    assert "episode_16_vlm121 is not what was planned" in report.stopped
    # The shard in which it shows is not begun.
    assert (report.done, report.failed, report.not_started, report.exit_status) == (SHARD_UNITS, [], 136, 1)
    made.source = whole
    report = made.build()
    assert (report.done, report.skipped) == (136, SHARD_UNITS)


def test_a_stop_asked_for_finishes_what_is_in_flight_and_counts_the_rest(bench):
    made = bench([GOOD] * 300)
    asked = []

    def stop_after_a_while() -> str | None:
        asked.append(None)
        return "stopped by the test" if len(asked) > 5 else None

    report = made.build(should_stop=stop_after_a_while)
    assert report.stopped == "stopped by the test"
    assert report.done + report.not_started == 300
    assert made.names() == sorted(made.names())
    assert len(made.names()) == report.done


def test_a_build_that_stops_at_once_ends_no_process_that_is_still_coming_up(bench, monkeypatch):
    """Ray loses a kill between the lease of a process and its actor's creation: it would hold its CPUs for good."""
    kill, were_up = ray.kill, []

    def kill_and_note(actor, **options) -> None:
        were_up.append(bool(ray.wait([actor.__ray_ready__.remote()], timeout=0.1)[0]))
        kill(actor, **options)

    monkeypatch.setattr(ray, "kill", kill_and_note)
    monkeypatch.setattr("pipeline.lanes.scheduler.STARTING_S", 60.0)
    report = bench([GOOD] * 3).build(lanes=2, should_stop=lambda: "stopped by the test")
    assert (report.done, report.not_started) == (0, 3)
    assert were_up == [True, True]


def test_a_build_that_waits_for_a_place_says_so_with_what_it_asks_for(bench, monkeypatch, caplog):
    monkeypatch.setattr("pipeline.lanes.scheduler.LATE_S", 0.2)
    monkeypatch.setattr("pipeline.lanes.scheduler.STARTING_S", 0.0)
    told = []

    def stop_once_told() -> str | None:
        told[:] = [record.getMessage() for record in caplog.records if "not come up" in record.getMessage()]
        return "told" if told else None

    @ray.remote(num_cpus=2)
    class Other:
        """Somebody else's, who holds the whole cluster."""

        def ready(self) -> None: ...

    other = Other.remote()
    ray.get(other.ready.remote())
    try:
        report = bench([GOOD]).build(lanes=1, should_stop=stop_once_told)
    finally:
        ray.kill(other)
    assert (report.stopped, report.not_started) == ("told", 1)
    assert "lane 0: its encoder process" in told[0]
    assert told[0].endswith("(free in the cluster: 0 CPU, 0 GPU)")
    assert len(told) == 1
