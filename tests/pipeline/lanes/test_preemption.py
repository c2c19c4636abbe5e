"""Nodes and drivers that vanish, and builds that share a store: all units end well, and hardly one is encoded twice."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_store import FeatureStore
from cache_store.naming import CLAIMS
from pipeline.lanes import run_build
from pipeline.work_plan import BuildTask, plan_build
from tests.media import write_video
from tests.pipeline.lanes.faulty_encoder import GOOD, FaultySource, FaultySpec, in_order

REPOSITORY = Path(__file__).parents[3]

# One build of steps that are all good, by a process of its own.
BUILD = """
import json, os, sys
from pathlib import Path
from cache_store import FeatureStore
from pipeline.lanes import run_build
from pipeline.work_plan import BuildTask, plan_build
from tests.pipeline.lanes.faulty_encoder import GOOD, FaultySource, FaultySpec

def planned(folder, run, count, *, delay_s=0.0, side=8, overwrite=False):
    marks = folder / "marks"
    marks.mkdir(exist_ok=True)
    store = FeatureStore(os.environ.get("STORE") or folder / "store", run_id=run)
    task = BuildTask(FaultySpec(marks, most_delay_s=delay_s), store.location, run)
    source = FaultySource(folder / run, [GOOD] * count, episode_steps=8, side=side)
    return plan_build(source, task, store, overwrite=overwrite), store
"""

ON_ITS_OWN = (
    BUILD
    + """
import time
from pipeline.work_plan import Plan
Plan.shards.__kwdefaults__["size"] = 8  # else the whole plan would be four shards
folder, run, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plan, store = planned(folder, run, count, delay_s=0.04, overwrite="overwrite" in sys.argv)
(folder / f"{run}.ready").touch()
waits_for = [name for name in sys.argv[4:] if name != "overwrite"]
while not all((folder / f"{name}.ready").exists() for name in waits_for):
    time.sleep(0.01)
print(json.dumps(run_build(plan, store).to_json()))
"""
)

# What is killed in the middle: one of two nodes that have room for an encoder but for no decoder, so that these live on
# the head; or the node of all decoders, and with it the pixels that wait for the encoder.
ON_A_CLUSTER = (
    BUILD
    + """
import logging, threading, time
import ray
from ray.cluster_utils import Cluster

is_of_decoders = "decoders" in sys.argv
head, node = {"num_cpus": 4}, {"num_cpus": 1, "num_gpus": 1}
if is_of_decoders:
    head, node = node, head
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(**node) for _ in range(1 if is_of_decoders else 2)]
ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
folder, count = Path(sys.argv[1]), int(sys.argv[2])
plan, store = planned(folder, "cluster", count, delay_s=0.03, side=256 if is_of_decoders else 8)
moments, killed = [], []

def note(progress):
    moments.append({lane.name: (lane.state, lane.done) for lane in progress.lanes})
    if not killed and all(lane.done > 3 for lane in progress.lanes):
        killed.append(progress.done)
        killer.start()
    if killed and "returns" in sys.argv and not killer.is_alive():
        sys.argv.remove("returns")
        cluster.add_node(**node)  # which only the main thread can do

killer = threading.Thread(target=cluster.remove_node, args=(nodes[-1], False), daemon=True)

report = run_build(plan, store, on_progress=note)
print(json.dumps({**report.to_json(), "killed_at": killed, "last": moments[-1]}))
ray.shutdown()
cluster.shutdown()
"""
)


def start(script: str, *arguments: object, **variables: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )


def report_of(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    # Ray writes to the same place when it ends.
    return json.loads([line for line in out.splitlines() if line.startswith('{"done"')][-1])


def forwards(folder: Path) -> list[str]:
    path = folder / "marks" / "forwards"
    return path.read_text().splitlines() if path.exists() else []


def digests(folder: Path) -> dict[str, str]:
    with FeatureStore(folder / "store") as store:
        assert store.verify().problems == []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "store").glob("*.pt")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, local_ray) -> list[tuple[str, str]]:
    """The names and digests of 200 steps, in their order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "marks").mkdir()
    store = FeatureStore(folder / "store", run_id="alone")
    task = BuildTask(FaultySpec(folder / "marks"), str(store.root), "alone")
    source = FaultySource(folder / "images", [GOOD] * 200, episode_steps=8)
    assert run_build(plan_build(source, task, store, overwrite=False), store).done == 200
    return in_order(digests(folder))


def test_a_node_that_is_killed_and_comes_back_costs_no_unit(tmp_path, undisturbed):
    report = report_of(start(ON_A_CLUSTER, tmp_path, 200, "returns"))
    assert report["killed_at"], "the build ended before a node was killed"
    assert (report["done"], report["failed"], report["not_started"]) == (200, [], 0)
    assert len(forwards(tmp_path)) < 200 + 40
    assert digests(tmp_path) == dict(undisturbed)


@pytest.mark.slow
def test_a_node_that_is_killed_for_good_leaves_its_work_to_the_others(tmp_path, undisturbed):
    report = report_of(start(ON_A_CLUSTER, tmp_path, 200))
    assert report["killed_at"]
    assert (report["done"], report["failed"], report["not_started"]) == (200, [], 0)
    assert digests(tmp_path) == dict(undisturbed)


def test_the_pixels_that_are_lost_with_the_decoders_node_are_decoded_again(tmp_path):
    report = report_of(start(ON_A_CLUSTER, tmp_path, 200, "returns", "decoders"))
    assert report["killed_at"]
    assert (report["done"], report["failed"], report["not_started"]) == (200, [], 0)
    assert report["restarts"] >= 1
    assert len(digests(tmp_path)) == 200


@pytest.mark.parametrize("url", [pytest.param("", marks=pytest.mark.slow), "local://{}/store"])
def test_two_builds_on_one_store_share_the_work_and_both_report_all_of_it(tmp_path, undisturbed, url):
    names = ("first", "second")  # behind a URL with nothing else in common: as on two machines
    started = [
        start(ON_ITS_OWN, tmp_path, name, 160, *names, STORE=url.format(tmp_path), VLM_CACHE_TIER=tmp_path / name)
        for name in names
    ]
    one, two = map(report_of, started)
    for report in (one, two):
        assert (report["done"] + report["skipped"], report["failed"], report["not_started"]) == (160, [], 0)
    assert one["done"] + two["done"] == len(forwards(tmp_path)) <= 160 + 16
    assert min(one["done"], two["done"]) > 0
    assert list((tmp_path / "store" / CLAIMS).iterdir()) == []
    assert digests(tmp_path) == dict(undisturbed[:160])


def test_two_builds_that_overwrite_one_store_each_build_all_of_it_and_leave_the_same_files(tmp_path, undisturbed):
    names = ("first", "second")
    started = [start(ON_ITS_OWN, tmp_path, name, 48, *names, "overwrite") for name in names]
    for report in map(report_of, started):
        assert (report["done"], report["skipped"], report["failed"], report["not_started"]) == (48, 0, [], 0)
    assert len(forwards(tmp_path)) == 96, "by the store nobody can tell what the other has built anew"
    assert digests(tmp_path) == dict(undisturbed[:48])


def test_a_build_takes_over_what_a_killed_one_had_claimed(tmp_path):
    victim = start(ON_ITS_OWN, tmp_path, "victim", 160, "victim", "heir")
    heir = start(ON_ITS_OWN, tmp_path, "heir", 160, "victim", "heir")
    while len(forwards(tmp_path)) < 30 or not _claims_of(tmp_path, "victim"):
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    report = report_of(heir)
    assert (report["done"] + report["skipped"], report["failed"], report["not_started"]) == (160, [], 0)
    assert len(digests(tmp_path)) == 160
    assert list((tmp_path / "store" / CLAIMS).iterdir()) == []


def _claims_of(folder: Path, build: str) -> list[str]:
    found = []
    for path in (folder / "store" / CLAIMS).glob("*"):
        try:
            found += [path.name] if path.read_text() == build else []
        except OSError:
            continue
    return found


def test_sigterm_drains_and_reports(tmp_path):
    for number in range(60):
        write_video(tmp_path / "videos" / f"{number:02d}.mp4", frames=24, seed=number % 5)
    store, report = tmp_path / "store", tmp_path / "report"
    what = ["--source", "folder", "--data", tmp_path / "videos", "--encoder", "longva", "--model", "small"]
    command = [
        sys.executable,
        "-m",
        "jobs",
        "build",
        *what,
        "--nframe",
        24,
        "--store",
        store,
        "--report",
        report,
        "--json",
    ]
    build = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    while len(list(store.rglob("*.pt"))) < 2:
        assert build.poll() is None, build.communicate()
        time.sleep(0.01)
    build.send_signal(signal.SIGTERM)
    out, _ = build.communicate(timeout=60)
    told = json.loads(out)
    assert (build.returncode, told["stopped"]) == (1, "stopped by SIGTERM")
    assert told["failed"] == []
    assert told["done"] == len(list(store.rglob("*.pt"))) == 60 - told["not_started"] < 60
    assert json.loads((report / "report.json").read_text())["done"] == told["done"]
