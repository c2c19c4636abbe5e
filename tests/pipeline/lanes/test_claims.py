"""Builds at work keep their shards, dead ones lose them, and where nothing can be claimed every shard is free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from cache_store.naming import CLAIMS
from cache_store.processes import this_process
from pipeline.lanes import claims as claims_module
from pipeline.lanes.claims import STALE_AFTER_S, Claims


@pytest.fixture(autouse=True)
def _ask_at_once(monkeypatch):
    monkeypatch.setattr(claims_module, "ASK_AGAIN_S", 0.0)


def test_a_shard_belongs_to_the_first_build_until_it_gives_it_back(tmp_path):
    first, second = Claims(tmp_path, build="a"), Claims(tmp_path, build="b")
    assert first.take("shard")
    assert not second.take("shard")
    second.release("shard")
    assert not second.take("shard"), "gave back what was not its own"
    first.release("shard")
    assert second.take("shard")
    assert not first.take("shard")


def test_a_build_that_ends_gives_everything_back(tmp_path):
    first, second = Claims(tmp_path, build="a"), Claims(tmp_path, build="b")
    assert first.take("shard")
    first.close()
    assert second.take("shard")
    second.close()
    assert list((tmp_path / CLAIMS).iterdir()) == []


def _killed_build(tmp_path, shard: str) -> None:
    script = "import os, sys; from pathlib import Path; from pipeline.lanes.claims import Claims; "
    script += f"assert Claims(Path({str(tmp_path)!r}), build='dead').take({shard!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / CLAIMS / shard).read_text() == "dead"


def test_what_a_killed_build_of_this_host_had_is_taken_over_at_once(tmp_path):
    second = Claims(tmp_path, build="b")
    _killed_build(tmp_path, "shard")
    assert second.take("shard")
    assert (tmp_path / CLAIMS / "shard").read_text() == "b"


def test_the_leavings_of_a_killed_build_are_swept_by_the_next_one(tmp_path):
    _killed_build(tmp_path, "shard")
    Claims(tmp_path, build="b")
    assert [path.name for path in (tmp_path / CLAIMS).iterdir()] == ["b.owner"]


def test_a_build_of_another_host_is_judged_by_its_signs_of_life(tmp_path):
    claims, far = Claims(tmp_path, build="b"), tmp_path / CLAIMS / "far.owner"
    far.write_text(json.dumps(asdict(replace(this_process("far"), host="elsewhere"))))
    (tmp_path / CLAIMS / "shard").write_text("far")
    assert not claims.take("shard")
    os.utime(far, (0, far.stat().st_mtime - STALE_AFTER_S - 1))
    assert claims.take("shard")


def test_a_sign_of_life_is_given_in_time(tmp_path, monkeypatch):
    claims, owner = Claims(tmp_path, build="a"), tmp_path / CLAIMS / "a.owner"
    os.utime(owner, (0, 0))
    claims.refresh()
    assert owner.stat().st_mtime == 0, "too early"
    monkeypatch.setattr(claims_module, "REFRESH_S", -1.0)
    claims.refresh()
    assert owner.stat().st_mtime > 0


def test_where_nothing_can_be_written_every_shard_is_free(tmp_path):
    (tmp_path / ".vlm-cache").write_text("no folder")
    claims = Claims(tmp_path, build="a")
    assert claims.take("shard")
    claims.release("shard")
    claims.refresh()
    claims.close()


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_an_unreadable_owner_is_nobody(tmp_path, content):
    claims = Claims(tmp_path, build="b")
    (tmp_path / CLAIMS / "odd.owner").write_text(content)
    (tmp_path / CLAIMS / "shard").write_text("odd")
    assert claims.take("shard")
