"""Publishing is one step: the old file or the whole new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import threading
from contextlib import suppress

import pytest
import torch

from cache_store import EntryExists, PutItem, StepKey, StoreWriteError, atomic
from cache_store.atomic import create_only, make_folder, publish
from tests.cache_store.conftest import SimulatedCrash, tensor

KEY = StepKey("episode", 0)


def test_put_keeps_the_old_feature_when_the_writer_dies(store, crash_before_rename):
    store.put(KEY, tensor(1))
    with pytest.raises(SimulatedCrash), crash_before_rename():
        store.put(KEY, tensor(2))
    assert torch.equal(store.get(KEY), tensor(1))
    left = [path.name for path in store.root.iterdir() if path.name.startswith(".vlm-tmp-")]
    assert len(left) == 1


@pytest.mark.parametrize("call", ["open", "writev", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_stops_the_put_names_itself_and_leaves_nothing(store, monkeypatch, call, number):
    store.put(KEY, tensor(1))

    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises(StoreWriteError, match=os.strerror(number)) as caught:
            store.put(KEY, tensor(2))
    assert caught.value.errno == number
    assert pickle.loads(pickle.dumps(caught.value)).__dict__ == caught.value.__dict__
    assert torch.equal(store.get(KEY), tensor(1))
    assert [path.name for path in store.root.iterdir() if "tmp" in path.name] == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(atomic.os, "writev", lambda fd, buffers: real(fd, [bytes(buffers[0])[:3]]))
    publish([b"0123456789", memoryview(b"abc")], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"0123456789abc"


def test_a_folder_that_vanishes_before_the_write_is_made_again(tmp_path, monkeypatch):
    real, removed = os.open, []

    def open_after_removal(path, *args, **options):
        if not removed:
            removed.append(os.rmdir(tmp_path / "data"))
        return real(path, *args, **options)

    (tmp_path / "data").mkdir()
    monkeypatch.setattr(atomic.os, "open", open_after_removal)
    publish([b"x"], tmp_path / "data" / "x")
    assert (tmp_path / "data" / "x").read_bytes() == b"x"


def test_many_threads_may_make_the_same_folder(tmp_path):
    barrier, errors = threading.Barrier(8), []

    def make():
        barrier.wait()
        try:
            make_folder(tmp_path / "a" / "b" / "c")
        except OSError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_create_only_has_one_winner_and_never_an_empty_file(tmp_path):
    assert create_only(b"first", tmp_path / "marker")
    assert not create_only(b"second", tmp_path / "marker")
    assert (tmp_path / "marker").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


def test_the_folder_of_what_is_published_before_an_error_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "flush_folder", lambda folder: flushed.append(str(folder)))
    (tmp_path / "b").write_bytes(b"old")
    files = [([b"new"], f"{tmp_path}/{name}") for name in ("a", "b")]
    with pytest.raises(EntryExists):
        atomic.publish_many(files, published=lambda _: None, create_only=True)
    assert flushed == [str(tmp_path)]
    assert [(tmp_path / name).read_bytes() for name in ("a", "b")] == [b"new", b"old"]


@pytest.fixture
def few_open_files():
    """Let the process open a hundred files beside those that it has open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(100)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1] + 1, limits[1]))
    for fd in free:
        os.close(fd)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_features_than_files_may_be_open_are_put_packed_and_unpacked(store, few_open_files):
    items = [PutItem(StepKey("episode", number), tensor(number)) for number in range(200)]
    assert store.put_many(items, create_only=True) == [store.root / f"episode_vlm{number}.pt" for number in range(200)]
    store.pack()
    assert store.unpack().files == 200
    assert all(torch.equal(store.get(item.key), item.value) for item in items)
    with pytest.raises(EntryExists) as caught:
        store.put_many([PutItem(StepKey("more", 0), tensor(0)), *items], create_only=True)
    assert caught.value.published == [store.root / "more_vlm0.pt"]


def test_the_limit_of_open_files_is_named_where_it_is_reached(store, few_open_files):
    store.put(KEY, tensor(1))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    with pytest.raises(StoreWriteError, match=r"raise the limit of \d+ open files \(ulimit -n\)"):
        store.put(KEY, tensor(2))
    for fd in taken:
        os.close(fd)
    assert torch.equal(store.get(KEY), tensor(1))


@pytest.fixture(params=[errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def no_links(monkeypatch, request):
    def refuse(*_args, **_options):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


def test_without_hard_links_new_names_are_given_by_renames_that_replace_nothing(store, no_links):
    for number in range(2):
        store.put(StepKey("episode", number), tensor(1), create_only=True)
    with pytest.raises(EntryExists):
        store.put(KEY, tensor(2), create_only=True)
    with pytest.raises(EntryExists):
        store.put_many([PutItem(StepKey("episode", 9), tensor(9)), PutItem(KEY, tensor(2))], create_only=True)
    store.pack()
    with pytest.raises(EntryExists):
        store.put(KEY, tensor(2), create_only=True)
    store.unpack()
    assert torch.equal(store.get(KEY), tensor(1))
    assert [path.name for path in store.root.iterdir() if "tmp" in path.name] == []


def test_without_hard_links_a_new_file_whose_name_is_packed_meanwhile_goes_again(tmp_path, no_links):
    with pytest.raises(EntryExists):
        publish([b"new"], tmp_path / "x", create_only=True, is_taken=lambda _: True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_refuse_to_replace_is_named(tmp_path, no_links, monkeypatch):
    monkeypatch.setattr(atomic, "_rename_no_replace", lambda *_: errno.EINVAL)
    with pytest.raises(StoreWriteError, match=r"neither hard links nor .*; put the store on another"):
        publish([b"new"], tmp_path / "x", create_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_published_files_have_the_permissions_that_the_umask_gives(store, umask, mask, mode):
    umask(mask)
    path = store.put(KEY, tensor(1))
    assert path.stat().st_mode & 0o777 == mode
