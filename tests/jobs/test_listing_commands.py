"""`ls` streams lines that other programs can cut; `show` finds a feature by its file or by its key."""

from __future__ import annotations

import json

import pytest
import torch

from cache_store import FeatureStore, StepKey, VideoKey
from jobs.__main__ import main

SIGNATURE = "0123abcd"


@pytest.fixture
def video(root):
    with FeatureStore(root) as store:
        key = VideoKey("Bench", "v", 8, SIGNATURE)
        first = store.put(key, {"vision_features": torch.zeros(1)}, recipe={"layer": -2})
        second = store.put(key, {"vision_features": torch.zeros(1)}, recipe={"layer": -1})
    return first, second


def test_a_pipe_gets_tab_separated_lines_in_the_order_of_names(run, root):
    rows = [line.split("\t") for line in run("ls")[1].splitlines()]
    assert [row[0] for row in rows] == sorted(path.name for path in root.glob("*.pt"))
    assert [int(row[1]) for row in rows] == [(root / row[0]).stat().st_size for row in rows]
    assert rows[-1][4] == "-"
    assert len(rows[0][4]) == 8


def test_a_terminal_gets_aligned_columns(run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    heading, *lines = run("ls")[1].splitlines()
    assert all(line.index("episode_") == heading.index("file") for line in lines)


def test_data_sets_are_chosen_by_pattern_and_lists_sorted(run, root):
    with FeatureStore(root) as store:
        store.get(StepKey("episode_1", 2))
    lines = run("ls", "--dataset", "*_1", "--sort", "used")[1].splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("episode_1_vlm2.pt")
    sizes = [int(line.split("\t")[1]) for line in run("ls", "--sort", "bytes")[1].splitlines()]
    assert sizes == sorted(sizes, reverse=True)


def test_json_is_one_array_also_of_nothing(run):
    assert len(json.loads(run("ls", "--json")[1])) == 5
    assert json.loads(run("ls", "--json", "--dataset", "nothing")[1]) == []


def test_show_finds_a_step_by_its_key_and_a_file_below_the_store(run):
    by_key = json.loads(run("show", "--dataset", "episode_1", "--vlm-idx", 2, "--json")[1])
    assert by_key["key"] == {"dataset": "episode_1", "kind": "step", "prompt_hash": None, "vlm_idx": 2}
    assert json.loads(run("show", "episode_1_vlm2.pt", "--json")[1]) == by_key
    assert "provenance: none\n" in run("show", "episode_1_vlm2.pt")[1]


def test_show_finds_a_video_and_the_one_of_a_second_recipe(run, video):
    asked = ["--dataset", "Bench", "--video-id", "v", "--nframe", 8, "--model-signature", SIGNATURE, "--json"]
    assert json.loads(run("show", *asked)[1])["recipe"] == {"layer": -2}
    video[0].unlink()
    assert json.loads(run("show", *asked)[1])["recipe"] == {"layer": -1}
    video[1].unlink()
    status, _, said = run("show", *asked)
    assert status == 2
    assert video[0].name in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--dataset", "episode_1"],
        ["--dataset", "episode_1", "--vlm-idx", 0, "--video-id", "v"],
        ["episode_1_vlm0.pt", "--dataset", "episode_1", "--vlm-idx", 0],
        ["--dataset", "../x", "--vlm-idx", 0],
    ],
)
def test_half_a_key_is_refused(run, arguments):
    assert run("show", *arguments)[0] == 2


def test_a_key_needs_a_store(capsys):
    assert main(["show", "--dataset", "episode_1", "--vlm-idx", "0"]) == 2
    assert "--store" in capsys.readouterr().err
