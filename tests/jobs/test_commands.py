"""The commands over a store, and the demo as a person runs it."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from jobs.__main__ import main
from jobs.sizes import format_seconds, format_size, parse_age, parse_size


def run(capsys, *arguments: object) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def test_stats_has_the_contracts_fields(root, capsys):
    status, out = run(capsys, "stats", "--store", root, "--json")
    stats = json.loads(out)
    assert status == 0
    assert stats["entries"] == 5
    assert stats["bytes"] == sum(path.stat().st_size for path in root.glob("*.pt"))
    assert stats["limit_bytes"] == 10**9
    assert stats["datasets"]["episode_1"]["entries"] == 4
    assert {"hits", "misses", "evictions"} <= stats.keys()
    assert "episode_2" in run(capsys, "stats", "--store", root)[1]


def test_ls_lists_every_file_or_those_of_one_data_set(root, capsys):
    _, out = run(capsys, "ls", "--store", root, "--json")
    assert [entry["name"] for entry in json.loads(out)] == sorted(path.name for path in root.glob("*.pt"))
    _, out = run(capsys, "ls", "--store", root, "--dataset", "episode_2")
    assert "episode_2_vlm0.pt" in out
    assert "episode_1" not in out


def test_show_prints_recipe_and_tensors_of_any_file(root, tmp_path, capsys):
    _, out = run(capsys, "show", root / "episode_1_vlm2.pt", "--json")
    shown = json.loads(out)
    assert shown["recipe"] == {"encoder": {"family": "x"}}
    assert shown["tensors"][0]["shape"] == [1, 1, 8]
    torch.save({"vision_features": torch.zeros(2, 3)}, tmp_path / "theirs.pt")
    _, out = run(capsys, "show", tmp_path / "theirs.pt")
    assert "plain torch.save" in out
    assert "[2, 3]" in out


def test_show_refuses_what_is_no_feature(tmp_path, capsys):
    assert main(["show", str(tmp_path / "gone.pt")]) == 2
    (tmp_path / "text.pt").write_text("no zip")
    assert main(["show", str(tmp_path / "text.pt")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_verify_names_the_damaged_file_and_says_so_in_its_status(root, capsys):
    assert run(capsys, "verify", "--store", root)[0] == 0
    victim = root / "episode_1_vlm1.pt"
    data = bytearray(victim.read_bytes())
    data[data.index(torch.full((8,), 1).numpy().tobytes())] ^= 1
    victim.write_bytes(data)
    status, out = run(capsys, "verify", "--store", root, "--json")
    found = json.loads(out)
    assert status == 1
    assert found["checked"] == 5
    assert [problem["path"] for problem in found["problems"]] == ["episode_1_vlm1.pt"]


def test_prune_says_what_it_would_delete_and_then_deletes_it(root, capsys):
    status, out = run(capsys, "prune", "--store", root, "--dataset", "episode_1", "--dry-run")
    assert status == 0
    assert "would delete 4 features" in out
    assert len(list(root.glob("*.pt"))) == 5
    run(capsys, "prune", "--store", root, "--dataset", "episode_1")
    assert [path.name for path in root.glob("*.pt")] == ["episode_2_vlm0.pt"]
    assert main(["prune", "--store", str(root)]) == 2


@pytest.mark.parametrize("command", ["stats", "ls", "verify", "clear"])
def test_looking_at_a_store_that_is_not_there_does_not_make_one(command, tmp_path, capsys):
    assert main([command, "--store", str(tmp_path / "typo")]) == 2
    assert "typo" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


@pytest.mark.usefixtures("local_ray")
def test_the_demo_runs_through_and_refuses_to_delete_what_it_did_not_make(tmp_path, capsys):
    assert main(["demo", "--folder", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "broken.mp4" in out
    assert "0 built, 6 skipped, 1 failed" in out
    assert "0 built, 32 skipped, 0 failed" in out
    assert "6 hits" in out
    assert "32 hits" in out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main(["demo", "--folder", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("50GiB", 50 * 2**30), ("1.5 GB", 1_500_000_000), ("0", 0), ("10kb", 10_000)],
)
def test_sizes_are_read_as_written(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "5 bananas", "1e3", "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_size(text)


def test_ages_and_their_words():
    assert parse_age("30d") == 30 * 86400
    with pytest.raises(argparse.ArgumentTypeError):
        parse_age("30")
    assert [format_size(n) for n in (0, 999, 1024, 150_994_944, 2**40)] == [
        "0 B",
        "999 B",
        "1.00 KiB",
        "144 MiB",
        "1.00 TiB",
    ]
    assert [format_seconds(s) for s in (0.04, 59.9, 61, 3725)] == ["0.0 s", "59.9 s", "1m 01s", "1h 02m"]
