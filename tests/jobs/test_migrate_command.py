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


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b'{"0123abcd": ["e", 1',
        b"hash,dataset\n",
        b"[]",
        b"",
        b"hash,dataset,vlm_idx\n0123abcd,e,1\n0123abcd,f,1\n",
        b'{"e_vlm1": "0123abcd", "f_vlm1": "0123abcd"}',
    ],
)
def test_a_list_that_is_none_is_refused_in_words(content, old, tmp_path, capsys):
    (tmp_path / "names").write_bytes(content)
    assert run(capsys, "--store", tmp_path / "new", "--from", old, "--names", tmp_path / "names")[0] == 2
