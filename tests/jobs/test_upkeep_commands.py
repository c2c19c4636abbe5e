"""verify, prune, pin and clear say what they did, what they left alone, and what to do next."""

from __future__ import annotations

import json

import pytest
import torch


def damage(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((8,), 1).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def test_verify_repair_moves_the_damaged_file_aside_and_says_how_to_go_on(run, root):
    victim = root / "episode_1_vlm1.pt"
    damage(victim)
    status, out, _ = run("verify")
    assert (status, victim.exists()) == (1, True)
    assert "--repair" in out
    status, out, _ = run("verify", "--repair")
    assert (status, victim.exists()) == (1, False)
    assert "episode_1_vlm1.pt" in out
    assert "quarantine" in out
    assert "build command again" in out
    status, out, _ = run("verify", "--json", "--workers", 1)
    assert (status, json.loads(out)["checked"]) == (0, 4)


def test_verify_tells_the_seed_of_its_sample_which_draws_it_again(run, root):
    status, out, _ = run("verify", "--sample", 2)
    assert status == 0
    assert "2 features with" in out
    seed = out.split("--seed ")[1].split(":")[0]
    damage(root / "episode_1_vlm1.pt")
    told = [json.loads(run("verify", "--sample", 2, "--seed", seed, "--json")[1]) for _ in range(2)]
    assert told[0] == told[1]
    assert (told[0]["checked"], told[0]["seed"]) == (2, int(seed))
    assert run("verify", "--seed", seed)[0] == 2


def test_verify_lists_files_that_are_no_features_apart(run, root):
    (root / "tower.pt").write_bytes(b"theirs")
    (root / "evil\x1b[31m.pt").write_bytes(b"theirs")
    status, out, _ = run("verify", "--repair")
    assert status == 0
    assert "not features, and left alone: 2 files" in out
    assert r"evil\x1b[31m.pt" in out
    assert (root / "tower.pt").exists()


def test_prune_shows_a_table_by_data_set_before_it_deletes(run, root):
    status, out, _ = run("prune", "--dataset", "episode_*", "--dry-run")
    assert status == 0
    assert "would delete 5 features" in out
    assert out.index("episode_1") < out.index("episode_2")
    assert len(list(root.glob("*.pt"))) == 5


def test_prune_by_model_and_by_recipe(run, root):
    _, out, _ = run("prune", "--model", "x", "--dry-run", "--json")
    assert len(json.loads(out)["deleted"]) == 4
    fingerprint8 = run("ls")[1].split()[4]
    _, out, _ = run("prune", "--recipe", fingerprint8.upper(), "--json")
    assert len(json.loads(out)["deleted"]) == 4
    assert [path.name for path in root.glob("*.pt")] == ["episode_2_vlm0.pt"]
    with pytest.raises(SystemExit) as stopped:
        run("prune", "--recipe", "12")
    assert stopped.value.code == 2


def test_pinned_features_survive_prune_unless_it_says_otherwise(run, root):
    assert run("pin", "--dataset", "episode_1", "--for", "30d", "--note", "May")[0] == 0
    _, out, _ = run("prune", "--dataset", "episode_*")
    assert "deleted 1 features" in out
    assert "kept 4 features that are pinned" in out
    run("prune", "--dataset", "episode_*", "--pinned-too")
    assert not list(root.glob("*.pt"))


def test_pins_are_listed_and_taken_back(run):
    assert "nothing is pinned" in run("pin", "--list")[1]
    _, out, _ = run("pin", "--dataset", "episode_1", "--dataset", "recv_*", "--note", "May", "--json")
    pinned = json.loads(out)
    assert (pinned["datasets"], pinned["expires"]) == (["episode_1", "recv_*"], None)
    assert [one["id"] for one in json.loads(run("pin", "--list", "--json")[1])] == [pinned["id"]]
    listed = run("pin", "--list")[1]
    assert "May" in listed
    assert "recv_*" in listed
    assert "removed 1 pin\n" in run("pin", "--remove", "recv_*")[1]
    assert "removed 1 pin\n" in run("pin", "--remove", pinned["id"][:8])[1]
    status, _, said = run("pin", "--remove", "episode_1")
    assert status == 2
    assert "--list" in said


@pytest.mark.parametrize(
    "arguments",
    [[], ["--list", "--remove", "a"], ["--list", "--for", "3d"], ["--dataset", "../x"], ["--dataset", "a", "--list"]],
)
def test_unclear_pins_are_refused(run, arguments):
    assert run("pin", *arguments)[0] == 2
    assert "nothing is pinned" in run("pin", "--list")[1]


def test_clear_says_what_it_would_delete_pins_included(run, root):
    run("pin", "--dataset", "episode_1")
    status, _, said = run("clear")
    assert status == 2
    assert "5 features" in said
    assert "1 pins" in said
    assert len(list(root.glob("*.pt"))) == 5
