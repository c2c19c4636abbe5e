"""`vlm-cache migrate` as a person runs it: what it refuses, and what it says when it cannot go on."""

from __future__ import annotations

import json

import pytest
import torch

from jobs.__main__ import main

H = "0123abcd"


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old" / H).mkdir(parents=True)
    for index in range(4):
        torch.save(torch.full((1, 1, 64), index).half(), tmp_path / "old" / H / f"episode_1_vlm{index}.pt")
    return tmp_path / "old"


def run(capsys, *arguments: object) -> tuple[int, str]:
    status = main(["migrate", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_a_dry_run_makes_no_store(old, tmp_path, capsys):
    status, _ = run(capsys, "--store", tmp_path / "new", "--from", old, "--to", "flat", "--dry-run")
    assert status == 0
    assert not (tmp_path / "new").exists()


def test_a_full_store_ends_the_run_with_its_counts_and_the_list(old, tmp_path, capsys):
    from cache_store import FeatureStore

    size = sum(path.stat().st_size for path in old.rglob("*.pt"))
    FeatureStore(tmp_path / "new", limit_bytes=size * 5 // 8).close()
    status, out = run(
        capsys, "--store", tmp_path / "new", "--from", old, "--to", "flat", "--json", "--write-list", tmp_path / "list"
    )
    found = json.loads(out)
    assert status == 1
    assert found["copied"] == 2
    assert len((tmp_path / "list").read_text().splitlines()) == 2
    assert {path.name for path in (tmp_path / "new").glob("*.pt")} == {"episode_1_vlm0.pt", "episode_1_vlm1.pt"}


def test_a_list_that_cannot_be_written_hides_no_results(old, tmp_path, capsys):
    command = ["--store", tmp_path / "new", "--from", old, "--to", "flat", "--write-list", tmp_path]
    status, out = run(capsys, *command)
    assert status == 1
    assert "copied" in out
    assert "may be deleted" not in out


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b'{"0123abcd": ["e", 1',
        b"hash,dataset\n",
        b"[]",
        b"",
    ],
)
def test_a_list_that_is_none_is_refused_in_words(content, old, tmp_path, capsys):
    (tmp_path / "names").write_bytes(content)
    assert run(capsys, "--store", tmp_path / "new", "--from", old, "--names", tmp_path / "names")[0] == 2


def test_bad_lines_are_each_named_the_others_migrated_and_the_status_says_so(tmp_path, capsys):
    old = tmp_path / "old"
    old.mkdir()
    for number in range(3):
        torch.save(torch.full((1, 1, 64), number).half(), old / f"{number:08x}.pt")
    lines = ["hash,dataset,vlm_idx", "00000000,e,0", "00000001,e,one", "00000002,e,2", "../x,e,\x1b"]
    (tmp_path / "names.csv").write_text("\n".join(lines))
    command = ("--store", tmp_path / "new", "--from", old, "--names", tmp_path / "names.csv")
    status, out = run(capsys, *command)
    assert status == 1
    assert f"{tmp_path}/names.csv: line 3: vlm_idx 'one' is no whole number\n" in out
    assert f"{tmp_path}/names.csv: line 5: vlm_idx '\\x1b' is no whole number\n" in out
    assert "2 copied" in out
    assert {path.name for path in (tmp_path / "new").glob("*.pt")} == {"e_vlm0.pt", "e_vlm2.pt"}
    status, out = run(capsys, *command, "--json")
    assert status == 1
    found = json.loads(out)
    assert found["there"] == 2
    assert [bad["line"] for bad in found["bad_lines"]] == [3, 5]


def test_a_good_list_has_no_bad_lines(tmp_path, old, capsys):
    (tmp_path / "names.json").write_text("{}")
    command = ("--store", tmp_path / "new", "--from", old, "--names", tmp_path / "names.json", "--json")
    status, out = run(capsys, *command)
    assert (status, json.loads(out)["bad_lines"]) == (0, [])


def test_what_is_no_prompt_hash_or_no_folder_is_refused(tmp_path, old, capsys):
    assert run(capsys, "--store", tmp_path / "new", "--from", old, "--to", "flat", "--prompt-hash", "XYZ")[0] == 2
    assert run(capsys, "--store", tmp_path / "new", "--from", tmp_path / "none", "--to", "flat")[0] == 2
    assert not (tmp_path / "new").exists()


def test_the_flat_form_needs_no_instruction_where_files_tell_theirs(tmp_path, capsys):
    import hashlib

    from cache_store import FeatureStore, StepKey

    digest = hashlib.sha256(b"pick it up").hexdigest()
    with FeatureStore(tmp_path / "store") as store:
        store.put(StepKey("e", 1), torch.zeros(1, 1, 4), recipe={"prompt": {"instruction_sha256": digest}})
    assert run(capsys, "--store", tmp_path / "store", "--to", "prompt-hash")[0] == 0
    assert (tmp_path / "store" / digest[:8] / "e_vlm1.pt").exists()
