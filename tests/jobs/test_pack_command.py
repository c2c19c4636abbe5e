"""pack and unpack move files into shards and back, and every other command finds the features all the same."""

from __future__ import annotations

import json

from tests.jobs.test_upkeep_commands import damage


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pt")}


def test_pack_and_unpack_tell_what_they_did(run, root):
    before = files(root)
    status, out, _ = run("pack", "--dry-run")
    assert (status, files(root)) == (0, before)
    assert "5 features" in out
    assert "would be packed" in out
    status, out, _ = run("pack", "--json")
    assert status == 0
    told = json.loads(out)
    assert (told["files"], told["shards"], told["problems"], told["dry_run"]) == (5, 1, [], False)
    assert files(root) == {}
    status, out, _ = run("unpack")
    assert status == 0
    assert "5 features" in out
    assert files(root) == before


def test_pack_unpack_is_unpack(run, root):
    before = files(root)
    run("pack")
    assert json.loads(run("pack", "--unpack", "--json")[1])["files"] == 5
    assert files(root) == before


def test_the_other_commands_find_packed_features(run, root, tmp_path):
    outputs = {command: run(*command)[:2] for command in (("ls",), ("ls", "--json"), ("verify", "--json"))}
    shown = run("show", "episode_1_vlm1.pt", "--json")[1]
    by_key = ("show", "--dataset", "episode_1", "--vlm-idx", 1, "--json")
    shown_by_key = run(*by_key)[1]
    stats = json.loads(run("stats", "--json")[1])
    run("pack")
    assert {command: run(*command)[:2] for command in outputs} == outputs
    assert run("show", "episode_1_vlm1.pt", "--json")[1] == shown
    assert run(*by_key)[1] == shown_by_key
    assert json.loads(run("stats", "--json")[1]) == stats
    assert run("show", "episode_1_vlm77.pt")[0] == 2
    assert json.loads(run("prune", "--dataset", "episode_2", "--json")[1])["deleted"]
    assert json.loads(run("stats", "--json")[1])["entries"] == stats["entries"] - 1
    assert run("clear", "--yes")[0] == 0
    assert not (root / "packed").exists()


def test_a_damaged_file_is_named_and_left(run, root):
    damage(root / "episode_1_vlm1.pt")
    status, out, _ = run("pack")
    assert status == 1
    assert "episode_1_vlm1.pt" in out
    assert "verify --repair" in out
    assert list(files(root)) == ["episode_1_vlm1.pt"]


def test_a_packed_store_is_not_migrated(run, root):
    run("pack")
    status, _, err = run("migrate", "--to", "flat")
    assert status == 2
    assert "unpack" in err
