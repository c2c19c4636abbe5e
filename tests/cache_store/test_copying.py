"""A store copied into another has the same names, bytes, recipes and owners, whatever either is kept in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from cache_store import FeatureStore, StepKey, StoreFull, VideoKey, recipe_fingerprint
from cache_store.copying import copy
from jobs.__main__ import main
from tests.cache_store.conftest import local_url, tensor
from tests.cache_store.remote.s3_server import s3_bucket

KEY, VIDEO = StepKey("episode", 0), VideoKey("Video-MME", "v", 4, "0a1b2c3d")
RECIPE, ANOTHER = {"weights": "a"}, {"weights": "b"}
KINDS = ["folder", "packed", "memory", "s3"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a store of a kind lies."""
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))

    def placed(kind, name):
        if kind == "s3":
            return f"{s3_bucket(monkeypatch)}/{name}"
        return f"memory://{tmp_path.name}/{name}" if kind == "memory" else str(tmp_path / name)

    return placed


def fill(root, kind="folder"):
    with FeatureStore(root) as store:
        for index in range(5):
            store.put(StepKey("episode", index), tensor(index), recipe=RECIPE)
        for seed, recipe in enumerate((RECIPE, ANOTHER)):
            store.put(VIDEO, {"vision_features": tensor(seed)}, recipe=recipe)
        if kind == "packed":
            store.pack()


def contents(root):
    with FeatureStore(root) as store:
        assert store.verify(workers=1).problems == []
        return {entry.name: store._content(entry.name).whole for entry in store.entries()}


@pytest.mark.parametrize(
    ("kind", "other"), [*((kind, "folder") for kind in KINDS), *(("packed", one) for one in KINDS[2:])]
)
def test_every_feature_arrives_as_the_bytes_that_it_was(place, kind, other):
    source, target = place(kind, "source"), place(other, "target")
    fill(source, kind)
    assert main(["migrate", "--from", source, "--store", target]) == 0
    assert contents(target) == contents(source)
    with FeatureStore(target) as store:
        assert torch.equal(store.get(VIDEO, recipe=ANOTHER)["vision_features"], tensor(1))
        assert store._claim(VIDEO, "c" * 64) == store._claim(VIDEO, "d" * 64) != "c" * 64


def test_the_same_command_again_copies_only_what_is_missing(place, capsys):
    source, target = place("folder", "source"), place("memory", "target")
    fill(source)
    main(["migrate", "--from", source, "--store", target, "--dataset", "Video-MME"])
    capsys.readouterr()
    assert main(["migrate", "--from", source, "--store", target, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["copied"], told["there"], told["files"]) == (5, 2, [])


def test_what_differs_there_is_named_and_left(place, capsys):
    source, target = place("folder", "source"), place("memory", "target")
    fill(source)
    with FeatureStore(target) as store:
        store.put(KEY, tensor(7))
        store.put(VIDEO, {"vision_features": tensor(8)}, recipe=ANOTHER)
    assert main(["migrate", "--from", source, "--store", target, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["copied"], told["conflict"]) == (5, 2)
    with FeatureStore(target) as store:
        assert torch.equal(store.get(KEY), tensor(7))
        assert torch.equal(store.get(VIDEO)["vision_features"], tensor(8))


def test_a_plain_folder_is_not_shared_by_two_recipes(place):
    source, target = place("folder", "source"), place("folder", "target")
    fill(source)
    with FeatureStore(target) as store:
        store.put(VideoKey("Video-MME", "another", 4, "0a1b2c3d"), {"vision_features": tensor(8)}, recipe=ANOTHER)
        with FeatureStore(source) as full:
            outcomes = {one.name: one.outcome for one in copy(full, store)}
    assert sorted(outcomes.values()) == ["conflict"] + ["copied"] * 6


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_plain_folder_of_another_recipe_is_told_before_anything_is_copied(place, dry_run):
    for kind in ("folder", "memory"):
        source, target = place("folder", f"source of {kind}"), place(kind, "target")
        with FeatureStore(source) as store:
            store.put(VIDEO, {"vision_features": tensor(0)}, recipe=RECIPE)
        with FeatureStore(target) as store, FeatureStore(source) as full:
            store.put(VideoKey("Video-MME", "another", 4, "0a1b2c3d"), {"vision_features": tensor(8)}, recipe=ANOTHER)
            (one,) = copy(full, store, dry_run=dry_run)
            assert (one.outcome, store.stats().entries) == ("conflict", 1)
            assert one.reason.startswith(f"recipe {recipe_fingerprint(ANOTHER)[:8]} owns")


@pytest.mark.parametrize(("kind", "other"), [("folder", "folder"), ("memory", "folder"), ("folder", "memory")])
def test_a_family_keeps_its_owner_where_only_second_recipes_have_features(place, kind, other):
    source, target = place(kind, "source"), place(other, "target")
    with FeatureStore(source) as store:
        for recipe in (RECIPE, ANOTHER):
            store.put(VIDEO, {"vision_features": tensor(0)}, recipe=recipe)
        store.prune(recipe_fingerprint=recipe_fingerprint(RECIPE))
        with FeatureStore(target) as empty:
            assert [one.outcome for one in copy(store, empty, dry_run=True)] == ["copied"]
            assert [one.outcome for one in copy(store, empty)] == ["copied"]
            empty.put(VideoKey("Video-MME", "another", 4, "0a1b2c3d"), {"vision_features": tensor(8)}, recipe=ANOTHER)
            folders = {entry.name.partition("/")[0] for entry in empty.entries()}
    assert folders == {f"Video-MME@{recipe_fingerprint(ANOTHER)[:8]}"}


def test_a_damaged_feature_is_named_and_costs_no_other(place, capsys):
    source, target = place("folder", "source"), place("memory", "target")
    fill(source)
    with FeatureStore(source) as store:
        path = store.path_of(KEY)
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["migrate", "--from", source, "--store", target]) == 1
    assert "damaged episode_vlm0.pt" in capsys.readouterr().out
    assert len(contents(target)) == 6


def test_a_copy_that_does_not_read_back_is_named(place, monkeypatch):
    source, target = place("folder", "source"), place("memory", "target")
    fill(source)
    whole, first = MemoryFileSystem.pipe_file, (Path(source) / "episode_vlm0.pt").read_bytes()

    def pipe_file(self, path, value, **options):
        whole(self, path, value[:-100] if value == first else value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with FeatureStore(source) as full, FeatureStore(target) as store:
        outcomes = {one.name: one.outcome for one in copy(full, store)}
    assert outcomes.pop("episode_vlm0.pt") == "conflict"
    assert set(outcomes.values()) == {"copied"}


def test_nothing_is_evicted_to_make_room_for_copies(place):
    source, target = place("folder", "source"), place("folder", "target")
    fill(source)
    with FeatureStore(source) as full:
        size = full.bytes_of(KEY)
        with FeatureStore(target, limit_bytes=3 * size) as store:
            store.put(StepKey("own", 0), tensor(0))
            with pytest.raises(StoreFull):
                list(copy(full, store))
            assert store.contains(StepKey("own", 0))


def test_a_dry_run_copies_nothing(place, capsys):
    source, target = place("folder", "source"), place("memory", "target")
    fill(source)
    assert main(["migrate", "--from", source, "--store", target, "--dry-run"]) == 0
    assert "7 would be copied" in capsys.readouterr().out
    assert contents(target) == {}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--from", "{source}", "--write-list", "x"], ["--from", "{target}"], ["--aliases", "--from", "memory://a/b"]],
)
def test_what_makes_no_sense_is_refused(place, arguments, capsys):
    places = {"source": place("folder", "source"), "target": place("folder", "target")}
    fill(places["source"])
    fill(places["target"])
    assert main(["migrate", "--store", places["target"], *(one.format(**places) for one in arguments)]) == 2


def test_a_kill_at_any_moment_loses_nothing(place, tmp_path):
    source, target = place("folder", "source"), local_url(tmp_path / "target")
    with FeatureStore(source) as store:
        for index in range(300):
            store.put(StepKey("episode", index), tensor(index))
        store.pack()
    command = [sys.executable, "-m", "jobs", "migrate", "--from", source, "--store", target]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "target").glob("*.pt"))) < 20:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert contents(target).items() <= contents(source).items()
    assert main(["migrate", "--from", source, "--store", target]) == 0
    assert contents(target) == contents(source)
