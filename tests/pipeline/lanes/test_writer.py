"""The writer gathers small features, blames single ones, and never calls a unit done before it is published."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from cache_store import FeatureStore, StepKey
from pipeline.encode_unit import EncodedUnit
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes.writer import MOST_BYTES, MOST_UNITS, Writer
from pipeline.sources import StepSample
from pipeline.unit_done import UnitDone
from pipeline.work_plan import Unit


class Task:
    """The part of a task that the writer asks for."""

    run_id = None

    def recipe(self, sample: StepSample) -> dict[str, str]:
        return {"family": "test"}


class CountingStore(FeatureStore):
    """Notes how many features each call publishes; calls wait for `gate`."""

    def __init__(self, root, **options) -> None:
        super().__init__(root, **options)
        self.calls: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def put(self, key, value, **options):
        self.gate.wait()
        self.calls.append(1)
        return super().put(key, value, **options)

    def put_many(self, items, **options):
        self.gate.wait()
        items = list(items)
        self.calls.append(len(items))
        return super().put_many(items, **options)


@pytest.fixture
def store(tmp_path):
    with CountingStore(tmp_path / "store") as opened:
        yield opened
    opened.gate.set()
    assert opened.verify().problems == []


def unit(number: int, value: object = None) -> EncodedUnit:
    sample = StepSample("episode", number, (), "lift")
    if value is None:
        value = torch.full((1, 1, 4), number, dtype=torch.float16)
    return EncodedUnit(Unit(f"episode_vlm{number}", StepKey("episode", number), sample), value, {}, 0.0)


def publish_all(writer: Writer, units: list[EncodedUnit]) -> list[UnitDone | UnitFailure]:
    writer.expect(len(units))
    return [writer.result(waiting) for waiting in [writer.publish(one) for one in units]]


def test_small_features_share_flushes_and_each_lies_under_its_key(store):
    outcomes = publish_all(Writer(Task(), store, limit_s=30), [unit(number) for number in range(MOST_UNITS)])
    assert [outcome.key for outcome in outcomes] == [f"episode_vlm{number}" for number in range(MOST_UNITS)]
    assert sum(store.calls) == MOST_UNITS
    assert len(store.calls) <= MOST_UNITS / 4, "hardly gathered"
    for number in range(MOST_UNITS):
        assert store.get(StepKey("episode", number)).flatten().tolist() == [number] * 4


def test_a_large_feature_is_flushed_alone(store):
    large = torch.zeros(MOST_BYTES // 2 + 2, dtype=torch.float16)
    outcomes = publish_all(Writer(Task(), store, limit_s=30), [unit(0, large), unit(1), unit(2, large.clone())])
    assert all(isinstance(outcome, UnitDone) for outcome in outcomes)
    assert sorted(store.calls) == [1, 1, 1]


def test_a_single_unit_does_not_wait_for_others(store):
    writer = Writer(Task(), store, limit_s=30)
    writer.expect()
    assert isinstance(writer.result(writer.publish(unit(0))), UnitDone)


@pytest.mark.parametrize("count", [1, 12])
def test_what_another_build_published_meanwhile_stays(store, count):
    for number in range(0, count, 3):
        recipe = {"family": "other"} if number % 2 else {"family": "test"}
        store.put(StepKey("episode", number), torch.full((1, 1, 4), -1, dtype=torch.float16), recipe=recipe)
    damaged = store.path_of(StepKey("episode", 6))
    if count > 6:
        damaged.write_bytes(damaged.read_bytes()[:-40])
    outcomes = publish_all(Writer(Task(), store, limit_s=30), [unit(number) for number in range(count)])
    failed = {outcome.key: outcome for outcome in outcomes if isinstance(outcome, UnitFailure)}
    assert list(failed) == [f"episode_vlm{number}" for number in (3, 9) if number < count]
    for one in failed.values():
        assert (one.stage, one.error, one.stops_build) == ("write", ErrorClass.EXCEPTION, False)
        assert '"other"' in one.reason
        assert "--overwrite" in one.reason
    values = [store.get(StepKey("episode", number)).flatten()[0].item() for number in range(count)]
    assert values == [-1 if number % 3 == 0 and number != 6 else number for number in range(count)]
    publish_all(Writer(Task(), store, limit_s=30, replaces=True), [unit(number) for number in range(count)])
    assert [store.get(StepKey("episode", number)).flatten()[0].item() for number in range(count)] == [*range(count)]


def test_features_of_a_group_are_told_from_those_that_another_build_published_first(store):
    store.put(StepKey("episode", 2), torch.full((1, 1, 4), -1, dtype=torch.float16), recipe={"family": "test"})
    units = [replace(unit(number), encode_s=0.5, split_into=1) for number in range(5)]
    outcomes = publish_all(Writer(Task(), store, limit_s=30), units)
    assert [outcome.is_found for outcome in outcomes] == [False, False, True, False, False]
    assert [outcome.encode_s for outcome in outcomes] == [0.5] * 5
    assert [outcome.split_into for outcome in outcomes] == [1, 1, None, 1, 1]
    assert all(outcome.write_s > 0 for outcome in outcomes if not outcome.is_found)


class Unstorable(torch.Tensor):
    """What the store refuses."""


def test_one_feature_that_cannot_be_stored_fails_alone(store):
    bad = torch.zeros(4).as_subclass(Unstorable)
    units = [unit(number, bad if number == 5 else None) for number in range(12)]
    outcomes = publish_all(Writer(Task(), store, limit_s=30), units)
    failed = [outcome for outcome in outcomes if isinstance(outcome, UnitFailure)]
    assert [(f.key, f.stage, f.error, f.stops_build) for f in failed] == [
        ("episode_vlm5", "write", ErrorClass.EXCEPTION, False)
    ]
    assert sorted(key.vlm_idx for key in store.keys()) == [n for n in range(12) if n != 5]


def test_a_full_store_keeps_what_fits_and_stops_the_build(tmp_path):
    with CountingStore(tmp_path / "small", limit_bytes=5000, run_id="r") as store:
        outcomes = publish_all(Writer(Task(), store, limit_s=30), [unit(number) for number in range(12)])
        failed = [outcome for outcome in outcomes if isinstance(outcome, UnitFailure)]
        assert {(f.error, f.stops_build) for f in failed} == {(ErrorClass.BAD_DISK, True)}
        assert len(list(store.keys())) == 12 - len(failed) > 0


def test_a_write_that_hangs_is_named_and_stops_the_build(store):
    store.gate.clear()
    writer = Writer(Task(), store, limit_s=0.2)
    writer.expect()
    failure = writer.result(writer.publish(unit(0)))
    assert (failure.stage, failure.error, failure.stops_build) == ("write", ErrorClass.HANG, True)


def test_no_unit_is_done_before_it_is_published(store):
    store.gate.clear()
    writer = Writer(Task(), store, limit_s=30)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            writer.expect()
        futures = [pool.submit(writer.result, writer.publish(unit(number))) for number in range(4)]
        assert not any(future.done() for future in futures)
        assert list(store.keys()) == []
        store.gate.set()
        assert all(isinstance(future.result(), UnitDone) for future in futures)
    assert len(list(store.keys())) == 4
