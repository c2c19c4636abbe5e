"""Builds at work keep their shards, dead ones lose them, and where nothing can be claimed every shard is free."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cache_store.naming import CLAIMS
from cache_store.processes import this_process
from cache_store.remote.objects import open_objects
from pipeline.lanes import claim_boards
from pipeline.lanes import claims as claims_module
from pipeline.lanes.claim_boards import FileBoard, ObjectBoard
from pipeline.lanes.claims import STALE_AFTER_S, Claims
from tests.cache_store.remote.s3_server import s3_bucket


def claims_in(root, build):
    return Claims(FileBoard(root, writer=build), build=build)


def sign_of(build, number):
    """What a build of another host writes as a sign of life."""
    return json.dumps({"owner": asdict(replace(this_process(build), host="elsewhere")), "sign": number})


@pytest.fixture(autouse=True)
def _ask_at_once(monkeypatch):
    monkeypatch.setattr(claims_module, "ASK_AGAIN_S", 0.0)


def test_a_shard_belongs_to_the_first_build_until_it_gives_it_back(tmp_path):
    first, second = claims_in(tmp_path, "a"), claims_in(tmp_path, "b")
    assert first.take("shard")
    assert not second.take("shard")
    second.release("shard")
    assert not second.take("shard"), "gave back what was not its own"
    first.release("shard")
    assert second.take("shard")
    assert not first.take("shard")


def test_a_shard_has_one_owner_where_the_file_system_has_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    first, second = claims_in(tmp_path, "a"), claims_in(tmp_path, "b")
    assert (first.take("shard"), second.take("shard")) == (True, False)


def test_a_build_that_ends_gives_everything_back(tmp_path):
    first, second = claims_in(tmp_path, "a"), claims_in(tmp_path, "b")
    assert first.take("shard")
    first.close()
    assert second.take("shard")
    second.close()
    assert list((tmp_path / CLAIMS).iterdir()) == []


def _killed_build(tmp_path, shard: str) -> None:
    script = "import os, sys; from pathlib import Path; from tests.pipeline.lanes.test_claims import claims_in; "
    script += f"assert claims_in(Path({str(tmp_path)!r}), 'dead').take({shard!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / CLAIMS / shard).read_text() == "dead"


def test_what_a_killed_build_of_this_host_had_is_taken_over_at_once(tmp_path):
    second = claims_in(tmp_path, "b")
    _killed_build(tmp_path, "shard")
    assert second.take("shard")
    assert (tmp_path / CLAIMS / "shard").read_text() == "b"


def test_the_leavings_of_a_killed_build_are_swept_by_the_next_one(tmp_path):
    _killed_build(tmp_path, "shard")
    claims_in(tmp_path, "b")
    assert [path.name for path in (tmp_path / CLAIMS).iterdir()] == ["b.owner"]


def test_a_build_of_another_host_is_judged_by_its_signs_of_life(tmp_path):
    claims, far = claims_in(tmp_path, "b"), tmp_path / CLAIMS / "far.owner"
    far.write_text(sign_of("far", 1))
    (tmp_path / CLAIMS / "shard").write_text("far")
    assert not claims.take("shard")
    os.utime(far, (0, far.stat().st_mtime - STALE_AFTER_S - 1))
    assert claims.take("shard")


def test_a_sign_of_life_is_given_in_time(tmp_path, monkeypatch):
    claims, owner = claims_in(tmp_path, "a"), tmp_path / CLAIMS / "a.owner"
    os.utime(owner, (0, 0))
    claims.refresh()
    assert owner.stat().st_mtime == 0, "too early"
    monkeypatch.setattr(claims_module, "REFRESH_S", -1.0)
    claims.refresh()
    assert owner.stat().st_mtime > 0


def test_where_nothing_can_be_written_every_shard_is_free(tmp_path):
    (tmp_path / ".vlm-cache").write_text("no folder")
    claims = claims_in(tmp_path, "a")
    assert claims.take("shard")
    claims.release("shard")
    claims.refresh()
    claims.close()


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_an_unreadable_owner_is_nobody(tmp_path, content):
    claims = claims_in(tmp_path, "b")
    (tmp_path / CLAIMS / "odd.owner").write_text(content)
    (tmp_path / CLAIMS / "shard").write_text("odd")
    assert claims.take("shard")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unreadable_claim_is_nobodys_and_is_swept(tmp_path, content):
    claims = claims_in(tmp_path, "b")
    for shard in ("shard", "other"):
        (tmp_path / CLAIMS / shard).write_bytes(content)
    assert claims.take("shard")
    assert (tmp_path / CLAIMS / "shard").read_text() == "b"
    claims.close()
    assert list((tmp_path / CLAIMS).iterdir()) == []


def test_what_another_build_is_writing_is_swept_only_when_that_build_is_dead(tmp_path):
    claims_in(tmp_path, "a")
    for name in ("shard.a.new", "a.owner.a.new", "shard.dead.new"):
        (tmp_path / CLAIMS / name).touch()
    claims_in(tmp_path, "b").close()
    assert {path.name for path in (tmp_path / CLAIMS).iterdir()} == {"a.owner", "shard.a.new", "a.owner.a.new"}


class TestBehindAUrl:
    """Notes are objects; their ages are what each machine has seen itself."""

    @pytest.fixture(params=["memory", "s3", "local"])
    def objects(self, request, tmp_path, monkeypatch):
        urls = {"memory": lambda: f"memory://{tmp_path.name}/s", "local": lambda: f"local://{tmp_path}/s"}
        return open_objects(urls.get(request.param, lambda: s3_bucket(monkeypatch))())

    @pytest.fixture
    def clock(self, monkeypatch):
        """The clock of this machine, which tests move by hand."""
        seconds = [1000.0]
        monkeypatch.setattr(claim_boards.time, "monotonic", lambda: seconds[0])
        return seconds

    def test_a_shard_belongs_to_the_first_build_until_it_gives_it_back(self, objects):
        first, second = (Claims(ObjectBoard(objects), build=build) for build in "ab")
        assert first.take("shard")
        assert not second.take("shard")
        second.release("shard")
        assert not second.take("shard")
        first.release("shard")
        assert second.take("shard")
        second.close()
        first.close()
        assert list(objects.names_in(CLAIMS)) == []

    def test_a_build_of_another_host_is_at_work_as_long_as_its_sign_changes(self, objects, clock):
        claims = Claims(ObjectBoard(objects), build="b")
        objects.put(f"{CLAIMS}/shard", b"far")
        for number in range(3):
            objects.put(f"{CLAIMS}/far.owner", sign_of("far", number).encode())
            assert not claims.take("shard")
            clock[0] += STALE_AFTER_S - 1
            assert not claims.take("shard")
        clock[0] += 2
        assert claims.take("shard")
        assert objects.get(f"{CLAIMS}/shard", lambda content, _: content) == b"b"

    def test_a_sign_of_life_is_another_one_each_time(self, objects, monkeypatch):
        claims = Claims(ObjectBoard(objects), build="a")
        before = claims._board.read("a.owner")
        monkeypatch.setattr(claims_module, "REFRESH_S", -1.0)
        claims.refresh()
        claims._board.close()
        assert claims._board.read("a.owner") not in (before, None)

    def test_what_a_killed_build_of_this_host_had_is_taken_over_at_once(self, objects):
        dead = {"owner": {**asdict(this_process("dead")), "pid": 2**22 + 1}, "sign": 1}
        objects.put(f"{CLAIMS}/dead.owner", json.dumps(dead).encode())
        objects.put(f"{CLAIMS}/shard", b"dead")
        assert Claims(ObjectBoard(objects), build="b").take("shard")

    def test_an_empty_claim_is_nobodys_and_is_swept(self, objects):
        claims = Claims(ObjectBoard(objects), build="b")
        for shard in ("shard", "other"):
            objects.put(f"{CLAIMS}/{shard}", b"")
        assert claims.take("shard")
        claims.close()
        assert list(objects.names_in(CLAIMS)) == []

    def test_a_claim_that_the_service_does_not_show_is_nobodys(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError

        objects = open_objects(f"memory://{tmp_path.name}/s")
        objects.put(f"{CLAIMS}/shard", b"far")
        monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
        assert Claims(ObjectBoard(objects), build="b").take("shard")

    def test_where_the_service_fails_every_shard_is_free(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError

        for name in ("pipe_file", "cat_file", "info", "ls"):
            monkeypatch.setattr(MemoryFileSystem, name, refuse)
        claims = Claims(ObjectBoard(open_objects(f"memory://{tmp_path.name}/s")), build="a")
        assert claims.take("shard")
        claims.release("shard")
        claims.refresh()
        claims.close()
