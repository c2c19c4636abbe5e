"""`vlm-cache plan` tells what the build would do, in its words where it would refuse, and changes nothing."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple

import jsonschema
import pytest
import torch

from cache_store import FeatureStore, StepKey
from jobs import build_request, plan_command
from jobs.__main__ import main
from jobs.arguments import make_parser
from jobs.sizes import format_size
from pipeline.encoders import load_spec
from pipeline.errors import EncoderError
from pipeline.size_estimate import FILE_OVERHEAD_BYTES
from tests.media import scramble, write_new_episode, write_video

STEP_BYTES = 128 + FILE_OVERHEAD_BYTES  # of a small model's feature, as the plan estimates it
SECONDS, COUNT, BYTES = {"type": "number", "minimum": 0}, {"type": "integer", "minimum": 0}, {"type": "integer"}


def fields(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


def listed(**properties):
    return {"type": "array", "items": fields(**properties)}


def or_null(schema):
    return {"anyOf": [schema, {"type": "null"}]}


TEXT, YES_NO = {"type": "string"}, {"type": "boolean"}
EVICTED = fields(entries=COUNT, bytes=BYTES)
SCHEMA = fields(
    todo=COUNT,
    skipped=COUNT,
    impossible=listed(key=TEXT, reason=TEXT),
    ignored={"type": "array", "items": {"type": "array", "prefixItems": [TEXT, TEXT]}},
    bytes=fields(new=BYTES, total=BYTES, is_upper_bound=YES_NO, new_as_measured=or_null(BYTES)),
    probe=fields(
        device=TEXT,
        units=listed(key=TEXT, decode_s=SECONDS, encode_s=SECONDS, bytes=BYTES),
        failed=listed(key=TEXT, stage=TEXT, error=TEXT, reason=TEXT),
        decode_s=or_null(SECONDS),
        encode_s=or_null(SECONDS),
        bytes=or_null(SECONDS),
    ),
    lanes=fields(lanes=COUNT, most_decoders=COUNT, is_gpu=YES_NO, cpus_per_lane=SECONDS),
    time=or_null(
        fields(
            decoders_per_lane=COUNT,
            wall_s=SECONDS,
            device_s=SECONDS,
            device_hours=SECONDS,
            device_busy=SECONDS,
            bound_by={"enum": ["decode", "encode"]},
        )
    ),
    store=fields(entries=COUNT, bytes=BYTES, limit_bytes=or_null(BYTES), pinned_bytes=BYTES, fits=YES_NO),
    disk=or_null(fields(free_bytes=BYTES, needed_bytes=BYTES, fits=YES_NO)),
    evicts=fields(
        entries=COUNT,
        bytes=BYTES,
        own_bytes=BYTES,
        datasets={"type": "object", "additionalProperties": EVICTED},
    ),
    fits=YES_NO,
    reasons={"type": "array", "items": TEXT},
    notes={"type": "array", "items": TEXT},
)


def everything(root):
    """What is below a folder, with all that would change if it were touched."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in root.rglob("*")}


@pytest.fixture(autouse=True)
def weights_read_here(monkeypatch):
    """Spare most tests the process that reads the weights."""
    monkeypatch.setattr(build_request, "_load_spec_apart", build_request._load_spec)


@pytest.fixture
def steps(tmp_path):
    """One episode of the new format: eight steps."""
    write_new_episode(tmp_path / "episodes" / "insertion" / "episode_1", poses=240)
    return tmp_path / "episodes"


@pytest.fixture
def plan(tmp_path, capsys):
    """Plan over the steps, or over the videos; returns the exit status and the JSON, or with `as_text` the text."""

    def run(*more, source="vla", as_text=False, probe=0):
        data, encoder = ("episodes", "qwen2_5_vl") if source == "vla" else ("videos", "longva")
        argv = ["plan", "--source", source, "--data", tmp_path / data, "--encoder", encoder, "--model", "small"]
        argv += ["--store", tmp_path / "store", "--probe", probe, *more, *([] if as_text else ["--json"])]
        before = everything(tmp_path)
        status = main([str(one) for one in argv])
        assert everything(tmp_path) == before
        said = capsys.readouterr()
        if as_text or status == 2:
            return status, said.err if status == 2 else said.out
        found = json.loads(said.out)
        jsonschema.validate(found, SCHEMA)
        return status, found

    return run


@pytest.fixture
def store(tmp_path):
    """A store of ten features of other data sets, "old" used longest ago."""
    with FeatureStore(tmp_path / "store") as opened:
        for dataset in ("old", "new"):
            for index in range(5):
                opened.put(StepKey(dataset, index), torch.zeros(1, 1, 512, dtype=torch.float16))
        yield opened


def size_of(store):
    return sum(entry.bytes for entry in store.entries())


def test_a_plan_that_fits(steps, plan):
    status, found = plan("--limit", "1MiB")
    assert (status, found["fits"], found["reasons"]) == (0, True, [])
    assert (found["todo"], found["skipped"], found["impossible"]) == (8, 0, [])
    assert found["bytes"] == {
        "new": 8 * STEP_BYTES,
        "total": 8 * STEP_BYTES,
        "is_upper_bound": False,
        "new_as_measured": None,
    }
    assert (found["time"], found["probe"]["units"]) == (None, [])
    assert (found["store"]["limit_bytes"], found["evicts"]["entries"]) == (2**20, 0)


def test_the_store_is_left_without_a_limit_a_plan_and_a_folder(steps, plan, store, tmp_path):
    store.close()
    assert plan("--limit", "1MiB", "--soft-limit", "1KiB")[0] == 0
    assert FeatureStore(tmp_path / "store").limit_bytes is None
    shutil.rmtree(tmp_path / "store")
    assert plan("--limit", "1MiB", "--report", tmp_path / "report")[0] == 0


@pytest.mark.parametrize("source", ["vla", "folder"])
def test_a_store_behind_a_url_is_asked_and_left_as_it_is(steps, plan, tmp_path, monkeypatch, source):
    if source == "folder":
        for name in "ab":
            write_video(tmp_path / "videos" / f"{name}.mp4", frames=4)
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    url = f"memory://{tmp_path.name}/store"
    units = 8 if source == "vla" else 2
    asked, whole = [], plan_command.plan_build
    monkeypatch.setattr(plan_command, "plan_build", lambda *args, **more: asked.append(args) or whole(*args, **more))
    status, found = plan("--store", url, source=source)
    assert (status, found["todo"], found["skipped"], found["fits"], found["disk"]) == (0, units, 0, True, None)
    assert (found["store"]["limit_bytes"], found["evicts"]["entries"]) == (None, 0)
    new_bytes, (samples, task, _) = found["bytes"]["new"], asked[0]
    with monkeypatch.context() as patch:
        patch.setenv("VLM_CACHE_TIER", str(tmp_path.parent / f"{tmp_path.name}-there"))
        with FeatureStore(url) as store:
            for sample in list(samples)[: units // 2]:
                store.put(task.key(sample), torch.zeros(1, 1, 64).half(), recipe=task.recipe(sample))
    status, found = plan("--store", url, source=source)
    counts = (found["todo"], found["skipped"], found["store"]["entries"])
    assert (status, *counts) == (0, *[units // 2] * 3)
    assert found["bytes"]["new"] == new_bytes // 2
    said = plan("--store", url, source=source, as_text=True)[1]
    assert "no limit" in said
    assert "would evict" not in said
    status, said = plan("--store", url, "--limit", "1GiB", source=source)
    assert (status, "no size limit" in said) == (2, True)


def test_what_was_measured_becomes_hours(steps, plan):
    status, found = plan("--lanes", 2, "--decoders-per-lane", 3, "--device", "cpu", probe=2)
    assert status == 0
    probe, time = found["probe"], found["time"]
    assert len(probe["units"]) == 2
    assert probe["bytes"] > STEP_BYTES
    assert found["bytes"]["new_as_measured"] == round(8 * probe["bytes"])
    assert found["disk"]["needed_bytes"] == found["bytes"]["new_as_measured"]
    assert (found["lanes"]["lanes"], time["decoders_per_lane"]) == (2, 3)
    assert time["device_s"] == pytest.approx(2 * time["wall_s"])
    assert time["device_hours"] == pytest.approx(time["device_s"] / 3600)


def test_the_limit_is_too_small_in_the_words_of_the_build(steps, plan):
    status, found = plan("--limit", "8KiB")
    assert (status, found["fits"], found["store"]["fits"]) == (1, False, False)
    assert "this build takes" in found["reasons"][0]
    assert "the store's limit is 8.00 KiB" in found["reasons"][0]
    status, found = plan("--limit", "100")
    assert "one feature takes 128 B" in found["reasons"][0]


def test_what_is_pinned_is_no_room(steps, plan, store):
    limit = size_of(store) + 3 * STEP_BYTES
    assert plan("--limit", limit)[0] == 0
    store.pin(["old", "new"])
    status, found = plan("--limit", limit)
    assert (status, found["store"]["pinned_bytes"], found["evicts"]["entries"]) == (1, size_of(store), 0)
    assert "pinned" in found["reasons"][0]


def test_what_a_running_build_holds_is_no_room(steps, plan, store, tmp_path):
    with FeatureStore(tmp_path / "store", run_id="run") as running:
        running.protect([StepKey(dataset, index) for dataset in ("old", "new") for index in range(5)])
        status, found = plan("--limit", size_of(store) + 3 * STEP_BYTES)
    assert (status, found["store"]["fits"], found["evicts"]["entries"]) == (1, False, 0)
    assert "of builds that are at work" in found["reasons"][0]


def test_what_would_be_evicted_is_named(steps, plan, store):
    one = size_of(store) // 10
    status, found = plan("--limit", size_of(store) + 8 * STEP_BYTES - one - 1)
    assert status == 0
    assert found["evicts"] == {
        "entries": 2,
        "bytes": 2 * one,
        "own_bytes": 0,
        "datasets": {"old": {"entries": 2, "bytes": 2 * one}},
    }
    assert found["disk"]["needed_bytes"] == 8 * STEP_BYTES - 2 * one


def test_allowed_to_evict_its_own(steps, plan, store):
    status, found = plan("--limit", 3 * STEP_BYTES, "--allow-eviction")
    assert (status, found["fits"]) == (0, True)
    assert (found["evicts"]["entries"], found["evicts"]["own_bytes"]) == (10, 5 * STEP_BYTES)
    assert found["disk"]["needed_bytes"] == 0


def test_the_disk_is_too_small(steps, plan, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan_command.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    status, found = plan()
    assert (status, found["fits"]) == (1, False)
    assert found["disk"] == {"free_bytes": 5000, "needed_bytes": 8 * STEP_BYTES, "fits": False}
    assert "4.88 KiB left" in found["reasons"][0]


@pytest.mark.usefixtures("local_ray")
def test_after_the_build_there_is_nothing_to_do_until_it_is_to_be_built_again(steps, plan, tmp_path, capsys):
    where = ["--source", "vla", "--data", steps, "--encoder", "qwen2_5_vl", "--model", "small"]
    assert main([str(one) for one in ["build", *where, "--store", tmp_path / "store"]]) == 0
    capsys.readouterr()
    status, found = plan(probe=3)
    assert (status, found["todo"], found["skipped"]) == (0, 0, 8)
    assert (found["probe"]["units"], found["time"], found["bytes"]["new"]) == ([], None, 0)
    assert found["notes"] == []
    elsewhere = shutil.copytree(steps, tmp_path / "elsewhere")
    status, found = plan("--data", elsewhere)
    (note,) = found["notes"]
    assert f"{steps} was built under such names before" in note
    again = ["build", *where[:3], elsewhere, *where[4:], "--store", tmp_path / "store", "--json"]
    assert main([str(one) for one in again]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]
    limit = found["store"]["bytes"]
    status, found = plan("--overwrite", "--limit", limit)
    assert (status, found["todo"], found["skipped"], found["evicts"]["entries"]) == (0, 8, 0, 0)
    assert found["disk"]["needed_bytes"] == 0
    status, said = plan("--instruction", "Another one.")
    assert status == 2
    assert "instruction_sha256" in said


def test_impossible_samples_are_named(plan, tmp_path):
    write_new_episode(tmp_path / "episodes" / "insertion" / "episode_1", poses=240)
    write_new_episode(tmp_path / "episodes" / "insertion" / "episode_2", poses=240)
    (tmp_path / "episodes" / "insertion" / "episode_2" / "robot_states.npz").write_bytes(b"damaged")
    status, found = plan()
    assert (status, found["fits"], found["todo"]) == (1, True, 8)
    (impossible,) = found["impossible"]
    assert "episode_2" in impossible["key"]
    assert found["reasons"] == ["impossible: 1 of 9 samples"]


def test_short_videos_count_by_their_own_length_and_a_broken_one_in_full(plan, tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", frames=5)
    status, found = plan("--nframe", 16, source="folder")
    short = found["bytes"]
    assert (status, short["is_upper_bound"]) == (0, False)
    scramble(tmp_path / "videos" / "broken.mp4")
    status, found = plan("--nframe", 16, source="folder", probe=2)
    assert (status, found["bytes"]["is_upper_bound"]) == (0, True)
    assert found["bytes"]["new"] > 3 * short["new"]
    ((failed,), (probed,)) = found["probe"]["failed"], found["probe"]["units"]
    assert (failed["key"], failed["stage"], failed["error"]) == ("broken", "decode", "bad media")
    assert probed["key"] == "a"
    assert found["time"] is not None


def test_many_videos_are_not_opened_unless_the_answer_hangs_on_it(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_command, "_READ_LENGTHS_OF", 0)
    write_video(tmp_path / "videos" / "a.mp4", frames=5)
    roomy = plan("--nframe", 16, source="folder")[1]["bytes"]
    assert roomy["is_upper_bound"]
    _, tight = plan("--nframe", 16, "--limit", roomy["new"] - 1, source="folder")
    assert (tight["bytes"]["is_upper_bound"], tight["fits"]) == (False, True)


def test_a_person_sees_it_at_a_glance(steps, plan, store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    one = size_of(store) // 10
    status, said = plan("--limit", size_of(store) + 8 * STEP_BYTES - one, as_text=True)
    lines = [line.rstrip() for line in said.splitlines()]
    assert status == 0
    assert "to build       8 units" in lines
    assert any(line.startswith("would evict    1 feature, ") for line in lines)
    assert lines[-2:] == [f"  old: 1, {format_size(one)}", "yes: the build would fit"]
    assert all(len(line) <= 100 for line in lines)
    status, said = plan("--limit", "8KiB", as_text=True)
    assert status == 1
    assert "no: this build takes 13.0 KiB" in said


def test_wrong_usage_is_refused_as_a_build_would_be(steps, plan):
    assert plan("--frames-per-forward", 2)[0] == 2
    assert plan("--soft-limit", "2MiB", "--limit", "1MiB")[0] == 2


def test_plan_takes_what_build_takes(steps):
    def options(command):
        parser = make_parser()._subparsers._group_actions[0].choices[command]
        return {action.option_strings[0] for action in parser._actions}

    assert options("plan") == options("build") | {"--probe"}


def test_lanes_of_a_cluster_are_asked_of_it(steps, plan, local_ray):
    """With an address the cluster that answers there counts, not this host."""
    import ray

    status, found = plan("--address", ray.get_runtime_context().gcs_address)
    assert status == 0
    assert (found["lanes"]["lanes"], found["lanes"]["cpus_per_lane"]) == (1, 2)


def test_the_cpus_of_this_host_are_those_that_ray_would_count(steps, plan, monkeypatch):
    """In a container with a quota, fewer than the host has."""
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 3.0)
    monkeypatch.delenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", raising=False)
    assert plan("--device", "cpu")[1]["lanes"]["cpus_per_lane"] == 3
    monkeypatch.delattr("ray._private.utils.get_num_cpus")
    monkeypatch.setattr(plan_command.os, "cpu_count", lambda: 7)
    assert plan("--device", "cpu")[1]["lanes"]["cpus_per_lane"] == 7


def test_weights_read_in_a_process_of_its_own_are_the_same_and_refused_in_the_same_words(tmp_path, monkeypatch):
    monkeypatch.undo()
    argv = ["plan", "--source", "vla", "--data", "x", "--encoder", "qwen2_5_vl", "--store", "x", "--model"]
    spec = build_request._load_spec_apart(make_parser().parse_args([*argv, "small"]))
    assert spec.recipe() == load_spec("qwen2_5_vl", "small").recipe()
    code = "import pickle, sys; pickle.load(sys.stdin.buffer).recipe(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(spec), check=True)
    with pytest.raises(EncoderError, match=r"config\.json"):
        build_request._load_spec_apart(make_parser().parse_args([*argv, str(tmp_path)]))
