"""A build with --store-dtype int8 goes through Ray, lies beside the exact one, and tells what it lost."""

from __future__ import annotations

import json

import pytest
import torch

from cache_store import FeatureStore, int8
from cache_store.archive import read_record
from cache_store.reports import Int8Stats
from jobs.__main__ import main
from jobs.stats_view import int8_rows
from tests.jobs.test_stats_view import dataset, seen, store
from tests.media import write_video


@pytest.fixture
def build(tmp_path, capsys):
    """Builds two small videos; returns status and report."""
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=6)
    what = ["--source", "folder", "--data", str(tmp_path / "videos"), "--encoder", "longva", "--model", "small"]

    def built(*options, command="build"):
        status = main([command, *what, "--nframe", "4", "--store", str(tmp_path / "store"), "--json", *options])
        return status, json.loads(capsys.readouterr().out)

    return built


@pytest.mark.usefixtures("local_ray")
def test_a_build_keeps_int8_beside_the_exact_features(build, tmp_path, capsys):
    status, planned = build("--store-dtype", "int8", "--probe", "1", command="plan")
    assert status == 0
    status, report = build("--store-dtype", "int8")
    assert (status, report["done"], report["skipped"]) == (0, 2, 0)
    assert planned["bytes"]["new"] <= report["bytes"] <= 2 * planned["bytes"]["new"]
    assert planned["probe"]["bytes"] == pytest.approx(report["bytes"] / 2, rel=0.01)
    assert build("--store-dtype", "int8")[1]["skipped"] == 2
    status, exact = build()
    assert (status, exact["done"], exact["skipped"]) == (0, 2, 0)
    assert report["bytes"] < 0.75 * exact["bytes"]  # these are so small that what is beside the tensors counts
    with FeatureStore(tmp_path / "store") as opened:
        key = next(iter(opened.keys()))
        path = opened.path_of(key)
        recipe = dict(read_record(path).recipe)
        assert recipe.pop("storage") == int8.STORAGE
        given = opened.get(key)["vision_features"]
        whole = opened.get(key, recipe=recipe, exact=True)["vision_features"]
        loss = opened.stats().datasets["videos"].int8
    assert given.dtype == whole.dtype == torch.float16
    assert loss.entries == 2
    assert (given.double() - whole.double()).abs().max() <= loss.max_error
    assert main(["stats", "--store", str(tmp_path / "store"), "--json"]) == 0
    datasets = json.loads(capsys.readouterr().out)["datasets"]
    assert datasets["videos"]["int8"] == loss.__dict__
    assert [data["int8"] for name, data in datasets.items() if "@" in name] == [None]
    assert "int8" in datasets["videos"]["models"][0]["model"].split()
    assert main(["show", str(path)]) == 0
    assert f"{int8.loss_in(str(path)).worst_cosine:.6f} in the worst token" in capsys.readouterr().out
    assert main(["stats", "--store", str(tmp_path / "store"), "--html", str(tmp_path / "page.html")]) == 0
    assert f'<td class="number">{loss.worst_cosine:.6f}</td>' in (tmp_path / "page.html").read_text()
    assert main(["stats", "--store", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert f"{loss.worst_cosine:.6f}" in out
    assert f"{100 * loss.mean_relative_error:.2f} %" in out
    assert main(["verify", "--store", str(tmp_path / "store")]) == 0


def test_robot_steps_are_not_kept_as_int8(tmp_path, capsys):
    what = ["--source", "vla", "--data", str(tmp_path), "--encoder", "qwen2_5_vl", "--model", "small"]
    assert main(["build", *what, "--store", str(tmp_path / "store"), "--store-dtype", "int8"]) == 2
    assert "--store-dtype means nothing for --source vla" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 200])
def test_the_worst_data_set_is_shown_first_on_any_terminal(width):
    losses = {f"set_{n}": dataset(int8=Int8Stats(900, 0.9999 - n / 100, 0.99995, 0.25, 0.011, 0.01)) for n in range(30)}
    out = seen(store({**losses, "exact": dataset()}), width=width)
    for narrow in (60, width):
        assert max(map(len, seen(store(losses), width=narrow).splitlines())) <= narrow
    table = out[out.index("kept as int8") :]
    assert table.index("set_29") < table.index("set_28")
    assert "exact" not in table
    assert "set_0 " not in table  # as many rows as data sets are shown
    assert "set_0 " in seen(store(losses), width=width, most_rows=None)
    assert "int8" not in seen(store({"exact": dataset()}))


def test_of_how_many_the_loss_is_told_is_said_where_it_is_not_of_all():
    loss = Int8Stats(900, 0.99, 0.99995, 0.25, 0.011, 0.01)
    stats = store(
        {"none": dataset(int8_untold=7), "some": dataset(int8=loss, int8_untold=3), "all": dataset(int8=loss)}
    )
    assert [row[:3] for row in int8_rows(stats)] == [
        ("all", "900", "0.990000"),
        ("some", "900 of 903", "0.990000"),
        ("none", "0 of 7", "-"),
    ]
