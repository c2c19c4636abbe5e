"""What lanes work on next: long videos first, nobody idle beside a queue, bounded bytes, decoders as needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache_store import FeatureStore, StepKey
from pipeline.encoders import load_spec
from pipeline.lanes import lane as lane_module
from pipeline.lanes.claim_boards import FileBoard
from pipeline.lanes.claims import Claims
from pipeline.lanes.feeding import CALL_BYTES, CALL_S, CALL_UNITS, FILE_BYTES, FIRST_GUESS_BYTES, MOST_WAITING, Feeding
from pipeline.lanes.lane import Lane
from pipeline.lanes.worker import State, Work, Worker
from pipeline.sources import VideoSample
from pipeline.work_plan import BuildTask, Plan, Unit, plan_build


class Videos:
    """Files of the given sizes, in this order."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self._samples = []
        for number, size in enumerate(sizes):
            path = folder / f"{number}.mp4"
            path.write_bytes(b"\0" * size)
            self._samples.append(VideoSample("clips", str(number), path, path.name))

    def __iter__(self) -> Iterator[VideoSample]:
        return iter(self._samples)

    def ignored(self) -> list:
        return []


@pytest.fixture
def plan(tmp_path):
    def make(sizes: list[int]) -> Plan:
        store = FeatureStore(tmp_path / "store", run_id="r")
        task = BuildTask(load_spec("longva", "small"), str(store.root), "r", nframe=4)
        return plan_build(Videos(tmp_path, sizes), task, store, overwrite=False)

    return make


def lanes(count: int) -> list[Lane]:
    made = [Lane(f"lane {number}", Worker(None, "encode", 3)) for number in range(count)]
    for lane in made:
        lane.decoders.append(Worker(None, "decode", 2))
        for worker in lane.workers:
            worker.state = State.READY
    return made


def names(feeding: Feeding, lane: Lane, count: int) -> list[str]:
    return [one(feeding, lane).unit.name for _ in range(count)]


def one(feeding: Feeding, lane: Lane) -> Work:
    """The lane's next call, of one unit as long as nothing is known of how long a unit takes."""
    [work] = feeding.next_to_decode(lane)
    return work


def test_the_largest_files_of_a_shard_come_first(plan):
    (lane,) = lanes(1)
    feeding = Feeding(plan([5, 900, 30, 900, 7]), None, [lane], lane_bytes=2**40)
    assert names(feeding, lane, 5) == ["1", "3", "2", "4", "0"]
    assert feeding.next_to_decode(lane) == []
    assert feeding.is_empty()


def test_a_lane_without_work_takes_from_the_longest_queue_and_from_the_fullest_encoder(plan):
    busy, idle = lanes(2)
    feeding = Feeding(plan([1] * 10), None, [busy, idle], lane_bytes=2**40)
    assert len(names(feeding, busy, 1)) == 1
    assert one(feeding, idle)
    assert len(busy.queue) == 8
    busy.decoded.extend(Work(unit.unit, pixels=unit.unit.name) for unit in list(busy.queue)[:2])
    assert len(feeding.next_to_encode(idle)) == 1
    assert len(busy.decoded) == 1


def test_units_that_take_less_than_a_call_share_calls_and_stay_together(plan):
    busy, idle = lanes(2)
    feeding = Feeding(plan([1] * 130), None, [busy, idle], lane_bytes=2**40)
    feeding.note_decoded(1000)
    feeding.note_speed("decode", CALL_S / 5)
    assert len(feeding.next_to_decode(busy)) == 1, "how long one takes to encode is not known yet"
    feeding.note_speed("encode", CALL_S / 4)
    first, second = feeding.next_to_decode(busy), feeding.next_to_decode(busy)
    assert (len(first), len(second)) == (4, 4)
    for pixels, works in (("first", first), ("second", second)):
        for work in works:
            work.pixels = pixels
        busy.decoded.extend(works)
    assert feeding.next_to_encode(idle) == first
    assert (busy.bytes_in_flight.held, idle.bytes_in_flight.held) == (5000, 4000)
    assert feeding.next_to_encode(busy) == second
    feeding.note_speed("encode", 0.0)
    feeding.note_speed("decode", 0.0)
    assert len(feeding.next_to_decode(busy)) == CALL_UNITS
    feeding.note_decoded(CALL_BYTES // 3)
    assert len(feeding.next_to_decode(busy)) == 3, "no more bytes"
    feeding.note_decoded(CALL_BYTES * 2)
    assert len(feeding.next_to_decode(busy)) == 1


def test_units_without_bytes_share_calls_too(plan):
    (lane,) = lanes(1)
    feeding = Feeding(plan([1] * 20), None, [lane], lane_bytes=2**40)
    feeding.note_decoded(0)
    feeding.note_speed("decode", 0.0)
    feeding.note_speed("encode", 0.0)
    assert len(feeding.next_to_decode(lane)) == CALL_UNITS


def test_clips_of_one_file_go_in_one_call(plan):
    (lane,) = lanes(1)
    planned = plan([1, 1])
    first, second = planned.source._samples
    clips = [replace(first, video_id=f"clip {number}", start_s=float(number)) for number in range(5)]
    planned.source._samples[:] = [*clips, second]
    planned = plan_build(planned.source, planned.task, FeatureStore(planned.task.store_root), overwrite=False)
    feeding = Feeding(planned, None, [lane], lane_bytes=2**40)
    feeding.note_decoded(FILE_BYTES // 3)
    assert [[work.unit.name for work in feeding.next_to_decode(lane)] for _ in range(3)] == [
        ["clip 0", "clip 1", "clip 2"],
        ["clip 3", "clip 4"],
        ["1"],
    ]
    works = [Work(Unit(str(number), StepKey("e", number), first), pixels="of one call") for number in range(3)]
    lane.decoded.extend(works)
    assert feeding.next_to_encode(lane) == works[:1], "each takes longer than a call"


def test_the_bytes_in_flight_are_bounded_and_one_unit_always_passes(plan):
    (lane,) = lanes(1)
    feeding = Feeding(plan([1] * 10), None, [lane], lane_bytes=FIRST_GUESS_BYTES * 2)
    assert len(names(feeding, lane, 2)) == 2
    assert feeding.next_to_decode(lane) == []
    feeding.note_decoded(FIRST_GUESS_BYTES * 5)
    assert feeding.next_to_decode(lane) == []
    lane.bytes_in_flight.held = 0
    assert feeding.next_to_decode(lane) != [], "larger than the limit, but alone"
    assert feeding.next_to_decode(lane) == []


def test_not_more_is_decoded_than_an_encoder_can_take_soon(plan):
    (lane,) = lanes(1)
    feeding = Feeding(plan([1] * 50), None, [lane], lane_bytes=2**40)
    lane.decoded.extend(one(feeding, lane) for _ in range(MOST_WAITING))
    assert feeding.next_to_decode(lane) == []


def test_a_suspect_of_a_process_that_is_down_is_taken_by_an_idle_one_and_is_alone_there(plan):
    down, idle = lanes(2)
    feeding = Feeding(plan([1]), None, [down, idle], lane_bytes=2**40)
    work = one(feeding, down)
    down.encoder.suspects.append(work)
    assert feeding.orphan(idle, idle.encoder) is None, "its own process may still take it"
    down.encoder.state = State.STARTING
    assert feeding.orphan(idle, idle.decoders[0]) is None, "of another kind"
    [taken] = idle.encoder.admit(list, lambda: feeding.orphan(idle, idle.encoder))
    assert taken is work
    assert taken.alone
    assert (down.bytes_in_flight.held, idle.bytes_in_flight.held) == (0, FIRST_GUESS_BYTES)


def test_a_shard_that_another_build_has_comes_last_and_is_waited_for(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.lanes.feeding.ASK_AGAIN_S", 0.0)
    monkeypatch.setattr("pipeline.lanes.claims.ASK_AGAIN_S", 0.0)
    planned = plan([1] * 130)
    first, second, third = (shard.name for shard in planned.shards())
    other, mine = (Claims(FileBoard(tmp_path / "store", writer=name), build=name) for name in ("other", "mine"))
    assert other.take(first)
    (lane,) = lanes(1)
    feeding = Feeding(planned, mine, [lane], lane_bytes=2**40)
    works = [one(feeding, lane) for _ in range(66)]
    assert {work.shard for work in works} == {second, third}
    assert feeding.next_to_decode(lane) == []
    assert not feeding.is_empty()
    for work in works:
        feeding.note_end(work)
    assert other.take(second), "not given back"
    other.release(first)
    assert {one(feeding, lane).shard for _ in range(64)} == {first}
    assert feeding.is_empty()


def watched(monkeypatch, lane: Lane, moments: list[bool]) -> list[int]:
    """Let the lane be looked at every tenth of a second; the encoder works in the moments that are True."""
    clock = [lane._looked_at]
    monkeypatch.setattr(lane_module.time, "monotonic", lambda: clock[0])
    asked = []
    for works in moments:
        clock[0] += 0.1
        lane.encoder.in_flight = {"call": None} if works else {}
        asked.append(lane.decoders_wanted())
    return [count for count in asked if count]


def test_a_starved_encoder_gets_the_decoders_that_it_needs_and_a_busy_one_none(monkeypatch):
    (lane,) = lanes(1)
    lane.decoders[0].in_flight = {"call": None}
    assert watched(monkeypatch, lane, [False, False, False, True] * 5 + [True]) == [3]
    assert watched(monkeypatch, lane, [True] * 45) == []
    lane.decoders[0].in_flight = {}
    assert watched(monkeypatch, lane, [False] * 45) == [], "its decoder had nothing to do either"
