"""Whom lost calls are blamed on: no preempted unit, no neighbour; and a process that always dies ends the build."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

from cache_store import StepKey
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.lanes import recovery as recovery_module
from pipeline.lanes.lane import Lane
from pipeline.lanes.limits import TimeLimits
from pipeline.lanes.oom_killer import oom_kills
from pipeline.lanes.recovery import DEATHS_WITHOUT_RESULT, Recovery, is_restarting
from pipeline.lanes.worker import State, Work, Worker
from pipeline.sources import ImageFile, StepSample
from pipeline.work_plan import Unit

RESTARTING = ActorUnavailableError("The actor is temporarily unavailable: IOError: The actor is restarting.", None)


class Failures(list):
    """Takes the place of the report."""

    deaths = 0

    def __init__(self) -> None:
        self.gave_up: list[str] = []

    def give_up(self, why: str) -> None:
        self.gave_up.append(why)

    def fail(self, worker: Worker, work: Work, failure: UnitFailure) -> None:
        self.append(failure)

    def lost(self, lane: Lane, worker: Worker, why: str) -> None:
        assert worker.state is State.READY
        self.deaths += 1


class Process:
    """Takes the place of an actor that Ray kills."""


@pytest.fixture
def failed(monkeypatch):
    monkeypatch.setattr(recovery_module, "is_gone", lambda node_id: node_id == "gone")
    monkeypatch.setattr("pipeline.lanes.worker.ray.kill", lambda actor, no_restart: None)
    return Failures()


@pytest.fixture
def lane():
    made = Lane("lane 0", Worker(Process(), "encode", 3))
    made.encoder.state, made.encoder.node_id = State.READY, "here"
    return made


def work(number: int = 0, *, alone: bool = False) -> Work:
    sample = StepSample("episode", number, (ImageFile("front", Path("x.png")),), "lift")
    return Work(Unit(f"episode_vlm{number}", StepKey("episode", number), sample), alone=alone)


def lose(recovery: Recovery, lane: Lane, lost: Work, exc: Exception, times: int) -> None:
    for _ in range(times):
        lane.encoder.state = State.READY
        recovery.take_lost(lane, lane.encoder, [lost], exc)


def test_who_dies_alone_twice_is_the_culprit_and_who_dies_in_company_is_not(failed, lane):
    recovery = Recovery(failed, TimeLimits())
    lose(recovery, lane, work(1), RayActorError(), 5)
    assert (failed, failed.deaths) == ([], 5)
    lose(recovery, lane, work(2, alone=True), RayActorError(), 2)
    assert [(failure.key, failure.error) for failure in failed] == [("episode_vlm2", ErrorClass.CRASH)]


def test_a_process_that_the_host_kills_for_its_memory_is_told_apart(failed, lane):
    lose(Recovery(failed, TimeLimits()), lane, work(alone=True), OutOfMemoryError("the node is low on memory"), 2)
    assert [failure.error for failure in failed] == [ErrorClass.OUT_OF_MEMORY]


@pytest.mark.parametrize(
    ("kills", "node", "error"),
    [
        ((3, 4), "here", ErrorClass.OUT_OF_MEMORY),
        ((3, 3), "here", ErrorClass.CRASH),
        ((None, None), "here", ErrorClass.CRASH),
        ((0, 7), "elsewhere", ErrorClass.CRASH),  # another host's count tells nothing
    ],
)
def test_the_kernels_out_of_memory_killer_is_told_by_its_count(failed, lane, kills, node, error):
    recovery, lost = Recovery(failed, TimeLimits()), work(alone=True)
    lane.encoder.answered("here", "host", oom_kills=kills[0])
    lose(recovery, lane, lost, RayActorError(), 1)
    lane.encoder.answered(node, "host", oom_kills=kills[1])
    lose(recovery, lane, lost, RayActorError(), 1)
    assert [failure.error for failure in failed] == [error]
    assert ("killer" in failed[0].reason) == (error is ErrorClass.OUT_OF_MEMORY)


def test_who_died_beside_a_victim_of_the_out_of_memory_killer_is_not_taken_for_one(failed, lane):
    recovery, lost = Recovery(failed, TimeLimits()), work()
    for kills, alone in ((0, False), (1, True), (1, True)):
        lane.encoder.answered("here", "host", oom_kills=kills)
        lost.alone = alone
        recovery.take_lost(lane, lane.encoder, [lost], RayActorError())
    assert [failure.error for failure in failed] == [ErrorClass.CRASH]


@pytest.mark.parametrize(
    ("cgroup", "file", "count"),
    [
        ("0::/box", "cgroup/box/memory.events", 5),
        ("4:memory:/box\n0::/", "cgroup/memory/box/memory.oom_control", 5),
        ("0::/", "proc/vmstat", 5),
        ("0::/", "proc/other", None),
    ],
)
def test_the_count_is_read_where_the_kernel_keeps_it(tmp_path, cgroup, file, count):
    for path, content in (("proc/self/cgroup", cgroup), (file, "oom 1\noom_kill 5\noom_group_kill 0")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content + "\n")
    assert oom_kills(cgroups=tmp_path / "cgroup", proc=tmp_path / "proc") == count


@pytest.mark.parametrize("exc", [RESTARTING, NodeDiedError("gone"), RayActorError()])
def test_a_unit_that_was_lost_with_its_node_is_never_blamed(failed, lane, exc):
    lane.encoder.node_id = "gone"
    lose(Recovery(failed, TimeLimits()), lane, work(alone=True), exc, DEATHS_WITHOUT_RESULT + 5)
    assert failed == []
    assert lane.encoder.suspects[0].maybe_done


def test_a_call_that_never_reached_its_process_blames_nobody(failed, lane):
    lose(Recovery(failed, TimeLimits()), lane, work(alone=True), RESTARTING, DEATHS_WITHOUT_RESULT + 5)
    assert failed == []
    assert not is_restarting(ActorUnavailableError("RPC error: Socket closed", None))


def test_lost_pixels_are_decoded_again_and_cost_no_process(failed, lane):
    lost, other = work(1, alone=True), work(2)
    lost.hold(lane.bytes_in_flight, 100)
    Recovery(failed, TimeLimits()).take_lost(lane, lane.encoder, [lost, other], ObjectLostError("00" * 28, None, ""))
    assert list(lane.queue) == [lost, other]
    assert (lane.encoder.state, lane.encoder.restarts, lane.bytes_in_flight.held) == (State.READY, 0, 0)
    assert not lost.alone


def test_a_process_that_dies_on_every_unit_ends_the_build(failed, lane):
    recovery = Recovery(failed, TimeLimits())
    for number in range(DEATHS_WITHOUT_RESULT - 1):
        lose(recovery, lane, work(number), RayActorError(), 1)
    assert failed.gave_up == []
    lose(recovery, lane, work(99), RayActorError(), 1)
    assert "died 10 times in a row" in failed.gave_up[0]


def test_of_several_units_in_a_lost_or_raising_call_none_is_blamed_before_it_was_alone(failed, lane):
    recovery = Recovery(failed, TimeLimits())
    together = [work(1), work(2)]
    recovery.take_lost(lane, lane.encoder, together, RayActorError())
    recovery.take_raised(lane.encoder, [work(3), work(4)], ValueError("of whom?"))
    assert failed == []
    assert [suspect.unit.key.vlm_idx for suspect in lane.encoder.suspects] == [1, 2, 3, 4]
    recovery.take_raised(lane.encoder, [work(5)], ValueError("mine"))
    assert [(failure.key, failure.reason) for failure in failed] == [("episode_vlm5", "ValueError: mine")]


def test_a_call_of_several_that_is_overdue_is_ended_and_blames_nobody(failed, lane):
    recovery = Recovery(failed, TimeLimits(encode_s=-1000.0, write_s=0.0))
    lane.encoder.started("call", [work(1), work(2)])
    recovery.end_overdue(lane, {"call": (lane, lane.encoder)})
    assert (failed, list(lane.encoder.in_flight)) == ([], ["call"]), "it comes back as lost"
    lane.encoder.ended("call")
    lane.encoder.started("alone", [work(1, alone=True)])
    recovery.end_overdue(lane, {"alone": (lane, lane.encoder)})
    assert [(failure.key, failure.error) for failure in failed] == [("episode_vlm1", ErrorClass.HANG)]


def test_a_spoiled_process_is_started_anew_once_and_all_in_flight_are_suspects(failed, lane):
    recovery = Recovery(failed, TimeLimits())
    spoiled = UnitFailure("x", "encode", "CUDA error", spoils_process=True)
    for number in range(3):
        recovery.take_spoiled(lane, lane.encoder, work(number), spoiled)
    assert failed == []
    assert (lane.encoder.restarts, len(lane.encoder.suspects)) == (1, 3)
    hanging = UnitFailure("y", "encode", "no result", ErrorClass.HANG, spoils_process=True)
    lane.encoder.state = State.READY
    recovery.take_spoiled(lane, lane.encoder, work(9), hanging)
    assert failed == [hanging]
