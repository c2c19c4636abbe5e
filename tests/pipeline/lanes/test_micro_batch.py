"""Steps that share a forward: who does depends on the plan alone, whatever fails, is killed, or is there already."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cache_store import FeatureStore
from cache_store.codec import describe
from pipeline.failures import ErrorClass
from pipeline.lanes import BuildReport, TimeLimits, run_build
from pipeline.sources import StepBatches
from pipeline.work_plan import BuildTask, plan_build
from tests.pipeline.lanes.faulty_encoder import (
    DECODER_DIES_ONCE,
    DECODER_HANGS,
    DECODER_RAISES,
    ENCODER_DIES,
    ENCODER_DIES_ONCE,
    ENCODER_HANGS,
    ENCODER_OUT_OF_MEMORY,
    ENCODER_RAISES,
    GOOD,
    FaultySource,
    FaultySpec,
)

SIZE, STEPS = 4, 10  # of a batch, of an episode: 4, 4 and 2 steps
pytestmark = pytest.mark.usefixtures("local_ray")


def build(folder: Path, faults: list[int], *, store: str = "store", **options) -> tuple[BuildReport, FeatureStore]:
    (folder / "marks").mkdir(exist_ok=True)
    spec = FaultySpec(folder / "marks", most_delay_s=options.pop("most_delay_s", 0.0), mixes=True)
    opened = FeatureStore(folder / store, run_id=store)
    task = BuildTask(spec, str(opened.root), store)
    source = StepBatches(FaultySource(folder / f"images {store}", faults, episode_steps=STEPS), SIZE)
    report = run_build(plan_build(source, task, opened, overwrite=False), opened, **options)
    assert report.done + report.skipped + len(report.failed) + report.not_started == len(faults)
    assert opened.verify().problems == []
    return report, opened


def group_of(number: int, count: int) -> list[int]:
    first = number // STEPS * STEPS
    begin = first + (number - first) // SIZE * SIZE
    return list(range(begin, min(begin + SIZE, first + STEPS, count)))


def batches(folder: Path) -> list[list[int]]:
    return sorted([int(n) for n in line.split()] for line in (folder / "marks" / "batches").read_text().splitlines())


def together(store: FeatureStore) -> dict[int, list[int]]:
    return {key.vlm_idx: describe(store.path_of(key)).record.provenance["steps_together"] for key in store.keys()}


def digests(store: FeatureStore) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.root.glob("*.pt")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, local_ray) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    _, store = build(folder, [GOOD] * 40)
    groups = [group_of(number, 40) for number in range(40)]
    assert batches(folder) == sorted({tuple(group): group for group in groups}.values()), "each forward once"
    assert together(store) == dict(enumerate(groups))
    for key in store.keys():
        assert store.get(key).flatten().tolist()[2] == sum(groups[key.vlm_idx])
    return digests(store)


def test_neither_lanes_nor_order_nor_processes_that_die_change_who_shares_a_forward(tmp_path, undisturbed):
    faults = [GOOD] * 40
    faults[5], faults[23] = DECODER_DIES_ONCE, ENCODER_DIES_ONCE
    report, store = build(tmp_path, faults, lanes=3, decoders_per_lane=2, most_delay_s=0.01)
    assert (report.done, report.failed) == (40, [])
    assert report.restarts >= 2
    assert together(store) == {number: group_of(number, 40) for number in range(40)}
    # Their first pixels differ from the others', so their own features do.
    assert {name for name, digest in digests(store).items() if digest != undisturbed[name]} == {
        "episode_1_vlm5.pt",
        "episode_3_vlm23.pt",
    }


def test_what_is_missing_is_built_with_its_whole_group_and_nothing_else_is_written(tmp_path, undisturbed):
    _, store = build(tmp_path, [GOOD] * 40)
    missing = [key for key in store.keys() if key.vlm_idx in (6, 12, 13, 39)]
    for key in missing:
        store.delete(key)
    written = {path.name: path.stat().st_mtime_ns for path in store.root.glob("*.pt")}
    (tmp_path / "marks" / "batches").unlink()
    report, store = build(tmp_path, [GOOD] * 40)
    assert (report.done, report.skipped) == (4, 36)
    assert batches(tmp_path) == [[4, 5, 6, 7], [10, 11, 12, 13], [38, 39]]
    assert digests(store) == undisturbed
    assert all((store.root / name).stat().st_mtime_ns == then for name, then in written.items())


def test_each_kind_of_failure_is_named_and_costs_no_neighbour(tmp_path, undisturbed):
    faults = [GOOD] * 60
    culprits = {
        1: (DECODER_RAISES, "decode", ErrorClass.EXCEPTION),
        11: (DECODER_HANGS, "decode", ErrorClass.HANG),
        21: (ENCODER_RAISES, "encode", ErrorClass.EXCEPTION),
        31: (ENCODER_DIES, "encode", ErrorClass.CRASH),
        41: (ENCODER_HANGS, "encode", ErrorClass.HANG),
        51: (ENCODER_OUT_OF_MEMORY, "encode", ErrorClass.OUT_OF_MEMORY),
    }
    for number, (fault, _, _) in culprits.items():
        faults[number] = fault
    report, store = build(tmp_path, faults, lanes=2, limits=TimeLimits(decode_s=4.0, encode_s=3.0))
    told = {int(failure.key.rpartition("vlm")[2]): (failure.stage, failure.error) for failure in report.failed}
    assert told == {number: (stage, error) for number, (_, stage, error) in culprits.items()}
    assert (report.done, report.not_started) == (54, 0)
    found = together(store)
    for number in found:
        others = group_of(number, 60)
        if 1 in others:
            others.remove(1)  # it could not be decoded: the rest went on without it
        elif set(others) & set(culprits):
            others = [number]  # one of the group took the process with it: each by itself
        assert found[number] == others
        assert store.get(next(key for key in store.keys() if key.vlm_idx == number)).flatten()[2] == sum(others)
    untouched = {name: digest for name, digest in digests(store).items() if name in undisturbed}
    whole = [n for n in range(40) if not set(group_of(n, 60)) & set(culprits)]
    assert len(whole) == 24
    for number in whole:
        name = f"episode_{1 + number // STEPS}_vlm{number}.pt"
        assert untouched[name] == undisturbed[name]
