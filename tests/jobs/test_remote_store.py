"""The commands over a store whose root is a URL; a build onto one, and the same build again, which skips all of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from cache_store import FeatureStore, StepKey, VideoKey, naming
from jobs.__main__ import main
from tests.media import write_video


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    with FeatureStore(f"memory://{tmp_path.name}/store") as store:
        for number in range(3):
            value = torch.full((1, 1, 8), float(number))
            store.put(StepKey("episode", number), value, recipe={"encoder": {"family": "x"}})
        store.put(StepKey("other", 0), torch.zeros(1, 1, 8))
    return store.location


@pytest.fixture
def run(capsys, url):
    def run_one(command, *arguments):
        status = main([command, "--store", url, *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_one


def test_what_is_there_is_shown(run, url):
    status, out, _ = run("stats", "--json")
    told = json.loads(out)
    assert (status, told["entries"], told["datasets"]["episode"]["models"][0]["model"]) == (0, 3 + 1, "x")
    assert len(run("ls", "--dataset", "episode")[1].splitlines()) == 3
    for where in (["--dataset", "episode", "--vlm-idx", 1], ["episode_vlm1.pt"]):
        status, out, _ = run("show", *where, "--json")
        assert (status, json.loads(out)["recipe"]) == (0, {"encoder": {"family": "x"}})
    status, _, err = run("show", "--dataset", "episode", "--vlm-idx", 9)
    assert (status, f"is not in {url}" in err) == (2, True)
    assert run("verify", "--json")[0] == 0


@pytest.mark.parametrize("where", [["--dataset", "episode", "--vlm-idx", 1], ["episode_vlm1.pt"]])
def test_the_object_is_shown_whatever_its_copy_is_like_or_where_there_is_no_room_for_one(run, url, monkeypatch, where):
    with FeatureStore(url) as store:
        store.get(StepKey("episode", 1))
        path = store.root / "episode_vlm1.pt"
        content, times = path.read_bytes(), path.stat()
        path.write_bytes(content.replace(bytes(torch.ones(8).numpy()), bytes(32)))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.read_bytes() != content
        status, out, _ = run("show", *where, "--json")
        assert (status, json.loads(out)["path"]) == (0, f"{url}/episode_vlm1.pt")
        path.unlink()
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", "10")
    status, out, _ = run("show", *where)
    assert (status, "float32 [1, 1, 8]" in out) == (0, True)


def test_a_video_that_only_a_second_recipe_has_is_shown_by_its_key(run, url):
    key, other = (VideoKey("videos", video_id, 4, "0a1b2c3d") for video_id in "ab")
    with FeatureStore(url) as store:
        store.put(other, {"vision_features": torch.zeros(2, 2)}, recipe={"weights": "first"})
        store.put(key, {"vision_features": torch.zeros(2, 2)}, recipe={"weights": "second"})
    of_key = ["--dataset", "videos", "--nframe", 4, "--model-signature", "0a1b2c3d", "--video-id"]
    status, out, _ = run("show", *of_key, "a", "--json")
    assert (status, json.loads(out)["recipe"]) == (0, {"weights": "second"})
    status, _, err = run("show", *of_key, "c")
    assert (status, f"{naming.relative_path(replace(key, video_id='c'))} is not in {url}" in err) == (2, True)


def test_what_is_to_go_is_deleted(run):
    assert len(json.loads(run("prune", "--model", "x", "--dry-run", "--json")[1])["deleted"]) == 3
    assert run("prune", "--dataset", "episode")[0] == 0
    assert run("clear", "--yes")[0] == 0
    assert run("ls")[1] == ""


@pytest.mark.parametrize(
    "command",
    [
        ("pin", "--dataset", "episode"),
        ("pack",),
        ("unpack",),
        ("prune", "--unused-for", "1d"),
        ("pin", "--remove", "x"),
    ],
)
def test_what_a_url_cannot_do_is_refused_with_a_reason(run, command):
    status, _, err = run(*command)
    assert (status, bool(err)) == (2, True)


@pytest.mark.usefixtures("local_ray")
def test_a_build_onto_a_url_and_again(tmp_path, monkeypatch, capsys):
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=4)
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    arguments = ["build", "--source", "folder", "--data", str(tmp_path / "videos"), "--encoder", "longva"]
    arguments += ["--model", "small", "--nframe", "4", "--store", f"local://{tmp_path}/store", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["bytes"]) == (2, sum(path.stat().st_size for path in tmp_path.glob("store/*/*.pt")))
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 2
    assert main([*arguments, "--limit", "1GiB"]) == 2
    assert "no size limit" in capsys.readouterr().err
    with FeatureStore(f"local://{tmp_path}/store") as store:
        assert sorted(key.video_id for key in store.keys()) == ["a", "b"]
        assert store.verify().problems == []
