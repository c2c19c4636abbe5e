"""Every kind of failure has its name, the culprit its blame, and what is built is what an undisturbed build gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cache_store import FeatureStore
from pipeline.failures import ErrorClass
from pipeline.lanes import BuildReport, TimeLimits, run_build
from pipeline.work_plan import BuildTask, plan_build
from tests.pipeline.lanes.faulty_encoder import (
    DECODER_DIES,
    DECODER_DIES_ONCE,
    DECODER_HANGS,
    DECODER_RAISES,
    ENCODER_DIES,
    ENCODER_DIES_ONCE,
    ENCODER_HANGS,
    ENCODER_OUT_OF_MEMORY,
    ENCODER_RAISES,
    ENCODER_SPOILED,
    ENCODER_SPOILED_ONCE,
    GOOD,
    FaultySource,
    FaultySpec,
    in_order,
)

SPEC_OPTIONS = ("most_delay_s", "files_on_disk", "dies_before_answer", "has_rival")
pytestmark = pytest.mark.usefixtures("local_ray")


def build(folder: Path, faults: list[int], *, store: str = "store", **options) -> tuple[BuildReport, FeatureStore]:
    (folder / "marks").mkdir(exist_ok=True)
    spec_options = {name: options.pop(name) for name in SPEC_OPTIONS if name in options}
    opened = FeatureStore(folder / store, run_id=store)
    task = BuildTask(FaultySpec(folder / "marks", **spec_options), str(opened.root), store)
    plan = plan_build(FaultySource(folder / "images", faults), task, opened, overwrite=False)
    report = run_build(plan, opened, **options)
    assert report.done + report.skipped + len(report.failed) + report.not_started == len(faults)
    assert opened.verify().problems == []
    return report, opened


def forwards(folder: Path) -> int:
    return len((folder / "marks" / "forwards").read_text().splitlines())


def digests(store: FeatureStore) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.root.glob("*.pt")}


def told(report: BuildReport) -> dict[str, tuple[str, ErrorClass]]:
    return {failure.key.removeprefix("episode_1_vlm"): (failure.stage, failure.error) for failure in report.failed}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, local_ray) -> list[tuple[str, str]]:
    """The names and digests of 200 steps, in their order."""
    return in_order(digests(build(tmp_path_factory.mktemp("undisturbed"), [GOOD] * 200)[1]))


def test_each_kind_of_failure_is_told_apart_and_costs_no_neighbour(tmp_path, undisturbed):
    faults = [GOOD] * 40
    faults[3], faults[7], faults[9], faults[12] = DECODER_RAISES, DECODER_DIES, DECODER_DIES_ONCE, DECODER_HANGS
    faults[17], faults[20], faults[22], faults[25] = ENCODER_RAISES, ENCODER_DIES, ENCODER_DIES_ONCE, ENCODER_HANGS
    faults[28], faults[31], faults[33] = ENCODER_OUT_OF_MEMORY, ENCODER_SPOILED, ENCODER_SPOILED_ONCE
    limits = TimeLimits(decode_s=6.0, encode_s=4.0)
    report, store = build(tmp_path, faults, limits=limits, lanes=2, most_delay_s=0.002)
    assert told(report) == {
        "3": ("decode", ErrorClass.EXCEPTION),
        "7": ("decode", ErrorClass.CRASH),
        "12": ("decode", ErrorClass.HANG),
        "17": ("encode", ErrorClass.EXCEPTION),
        "20": ("encode", ErrorClass.CRASH),
        "25": ("encode", ErrorClass.HANG),
        "28": ("encode", ErrorClass.OUT_OF_MEMORY),
        "31": ("encode", ErrorClass.EXCEPTION),
    }
    attempts = {failure.key.removeprefix("episode_1_vlm"): failure.attempts for failure in report.failed}
    assert attempts["7"] >= 2
    assert attempts["20"] >= 2
    assert attempts["31"] >= 2
    assert all(failure.host and len(failure.recipe) == 64 for failure in report.failed)
    assert (report.done, report.not_started) == (32, 0)
    # Their own images ask for nothing any more: only the first pixel, which names the fault, differs.
    ours, theirs = digests(store), dict(undisturbed)
    good = [name for name in ours if faults[int(name.removesuffix(".pt").rpartition("vlm")[2])] == GOOD]
    assert {name: theirs[name] for name in good} == {name: ours[name] for name in good}
    assert len(good) == 29


def test_a_full_disk_stops_the_build_and_is_named_once(tmp_path, undisturbed):
    report, store = build(tmp_path, [GOOD] * 200, files_on_disk=50)
    assert "No space left" in report.stopped
    assert [(failure.stage, failure.error) for failure in report.failed] == [("write", ErrorClass.BAD_DISK)]
    assert len(digests(store)) == report.done
    assert 0 < report.done <= 50
    assert report.not_started == 199 - report.done
    rest, store = build(tmp_path, [GOOD] * 200)
    assert (rest.done, rest.skipped) == (200 - report.done, report.done)
    assert digests(store) == dict(undisturbed)


def test_whatever_the_order_of_completion_each_feature_belongs_to_its_key(tmp_path, undisturbed):
    report, store = build(tmp_path, [GOOD] * 150, lanes=3, decoders_per_lane=2, most_delay_s=0.03)
    assert (report.done, forwards(tmp_path)) == (150, 150)
    for key in store.keys():
        # The mean colour: the step's number everywhere but in its first pixel.
        number = key.vlm_idx
        mean = (63 * number + GOOD) / 64, number, 63 * number / 64
        assert store.get(key).flatten().tolist() == pytest.approx(mean, rel=1e-3)
    assert digests(store) == dict(undisturbed[:150])


def test_what_another_build_published_meanwhile_is_not_encoded_again(tmp_path):
    (tmp_path / "marks").mkdir()
    store = FeatureStore(tmp_path / "store", run_id="late")
    task = BuildTask(FaultySpec(tmp_path / "marks"), str(store.root), "late")
    late = plan_build(FaultySource(tmp_path / "images", [GOOD] * 30), task, store, overwrite=False)
    build(tmp_path, [GOOD] * 30)
    assert forwards(tmp_path) == 30
    moments = []
    report = run_build(late, store, on_progress=moments.append)
    assert (report.done, report.skipped, report.not_started, report.exit_status) == (0, 30, 0, 0)
    assert moments[-1].todo == 0
    assert forwards(tmp_path) == 30


def test_what_another_build_published_before_the_write_is_not_counted_as_built_here(tmp_path):
    report, store = build(tmp_path, [GOOD] * 40, has_rival=True)
    assert (report.done, report.skipped, report.failed, report.exit_status) == (20, 20, [], 0)
    assert report.bytes == sum(store.bytes_of(key) for key in store.keys() if key.vlm_idx % 2 == 0)


def test_what_a_lost_encoder_had_published_is_not_encoded_again(tmp_path):
    report, _ = build(tmp_path, [GOOD], dies_before_answer=True)
    assert (report.done, report.skipped, report.failed, report.restarts) == (1, 0, [], 1)
    assert report.bytes > 0
    assert forwards(tmp_path) == 1
