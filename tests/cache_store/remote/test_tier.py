"""Copies on this machine: read without asking, never wrong for long, never a reason for an error."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from cache_store import (
    EntryExists,
    FeatureStore,
    LocalOnly,
    PutItem,
    ReadOnlyStore,
    RecipeMismatch,
    StepKey,
    StoreFormatError,
    StoreReadError,
    StoreWriteError,
    VideoKey,
    get_cache_manager,
    known_aliases,
    naming,
    recipe_fingerprint,
)
from cache_store.remote import owners, retries
from cache_store.remote import tier as tiers
from cache_store.remote.objects import ObjectInfo, Objects
from cache_store.remote.store import RemoteStore
from tests.cache_store.conftest import local_url, tensor
from tests.cache_store.remote.s3_server import s3_bucket

KEY, OTHER = StepKey("episode", 0), StepKey("episode", 30)
VIDEO = VideoKey("Video-MME", "v", 4, "0a1b2c3d")
RECIPE, ANOTHER = {"weights": "a"}, {"weights": "b"}


@pytest.fixture
def open_on(tmp_path, monkeypatch):
    """Opens the same remote root as another machine would: with copies of its own."""
    opened = []

    def open_one(machine, **options):
        monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / machine))
        opened.append(FeatureStore(f"memory://{tmp_path.name}/store", **options))
        return opened[-1]

    yield open_one
    for store in opened:
        assert store.verify().problems == []
        store.close()


def test_a_second_read_asks_the_service_nothing(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1), recipe=RECIPE)
    store.get(KEY)
    asked = store.transfers.requests
    assert torch.equal(store.get(KEY, recipe=RECIPE), tensor(1))
    assert torch.equal(open_on("a").get(KEY), tensor(1))
    assert store.transfers.requests == asked
    assert store.transfers.downloads == 1


@pytest.mark.parametrize("recipe", [RECIPE, ANOTHER])
def test_a_second_read_of_a_video_in_a_recipe_asks_nothing_either(open_on, recipe):
    store = open_on("a")
    for seed, one in enumerate((RECIPE, ANOTHER)):
        store.put(VIDEO, {"vision_features": tensor(seed)}, recipe=one)
    store.get(VIDEO, recipe=recipe)
    asked = store.transfers.requests
    assert torch.equal(store.get(VIDEO, recipe=recipe)["vision_features"], tensor(int(recipe == ANOTHER)))
    store.prefetch([(VIDEO, recipe)])
    assert store.transfers.requests == asked


def test_a_recipe_is_looked_for_under_all_names_of_a_benchmark(open_on):
    store, alias = open_on("a"), replace(VIDEO, dataset=known_aliases("Video-MME")[0])
    store.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    store.put(alias, {"vision_features": tensor(2)}, recipe=ANOTHER)
    assert torch.equal(store.get(VIDEO, recipe=ANOTHER)["vision_features"], tensor(2))


def test_the_managers_of_the_scripts_take_a_url(open_on):
    manager = get_cache_manager(open_on("a").location)
    manager.save_cache("episode", 3, tensor(1))
    assert manager is get_cache_manager(open_on("a").location)
    assert torch.equal(manager.load_cache("episode", 3), tensor(1))
    assert manager.list_cached_datasets() == {"episode": [3]}
    assert manager.get_cache_stats()["total_files"] == 1
    with pytest.raises(LocalOnly):
        manager.set_limit_gb(1)


def test_services_that_know_one_url_share_no_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path))
    url = s3_bucket(monkeypatch)
    here, again = FeatureStore(url), FeatureStore(url)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    assert endpoint.startswith("http://127.0.0.1:")
    s3_bucket(monkeypatch, endpoint.replace("127.0.0.1", "localhost"))
    there = FeatureStore(url)
    assert here.root == again.root != there.root
    here.put(KEY, tensor(1))
    assert torch.equal(here.get(KEY), tensor(1))
    assert not there._tier.has(naming.relative_path(KEY))
    for store in (here, again, there):
        store.close()


def test_what_another_process_has_in_memory_has_copies_of_its_own(open_on):
    store = open_on("a")
    code = "import sys; from cache_store import FeatureStore; print(FeatureStore(sys.argv[1]).root)"
    asked = [sys.executable, "-c", code, store.location]
    theirs = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.dirname(theirs) == str(store.root.parent)
    assert theirs != str(store.root)


def test_a_copy_has_the_objects_bytes_and_name(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1), recipe=RECIPE)
    store.get(KEY)
    content = fsspec.filesystem("memory").cat(f"{store.location.removeprefix('memory:/')}/episode_vlm0.pt")
    assert (store.root / "episode_vlm0.pt").read_bytes() == content
    assert torch.equal(torch.load(store.root / "episode_vlm0.pt", weights_only=True), tensor(1))


def test_what_this_machine_replaces_or_deletes_is_not_read_from_its_copy(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1))
    store.get(KEY)
    store.put(KEY, tensor(2))
    assert torch.equal(store.get(KEY), tensor(2))
    store.delete(KEY)
    assert store.get(KEY) is None


def test_a_recipe_that_a_copy_does_not_fit_is_asked_of_the_service(open_on):
    here, there = open_on("a"), open_on("b")
    here.put(KEY, tensor(1), recipe=RECIPE)
    here.get(KEY)
    there.put(KEY, tensor(2), recipe=ANOTHER)
    assert torch.equal(here.get(KEY, recipe=ANOTHER), tensor(2))
    for ask in (lambda: here.get(KEY, recipe=RECIPE), lambda: here.get_batch([KEY], recipe=RECIPE)):
        with pytest.raises(RecipeMismatch, match=f"^{here.location}/episode_vlm0.pt was made") as caught:
            ask()
        assert str(here.root) not in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).path == f"{here.location}/episode_vlm0.pt"
    assert here.get(KEY, recipe=RECIPE, on_stale="miss") is None


@pytest.mark.parametrize("key", [KEY, VIDEO])
@pytest.mark.parametrize("by", ["get", "get_batch"])
def test_a_copy_that_tells_no_recipe_gives_way_to_the_feature_that_has_one(open_on, key, by):
    here, there = open_on("a"), open_on("b")
    values = [tensor(n) if key is KEY else {"vision_features": tensor(n)} for n in (1, 2)]
    here.put(key, values[0])
    here.get(key)
    there.put(key, values[1], recipe=RECIPE)
    here = open_on("a")
    if by == "get_batch":
        assert torch.equal(here.get_batch([key], recipe=RECIPE).features[0], tensor(2))
    else:
        read = here.get(key, recipe=RECIPE)
        assert torch.equal(read if key is KEY else read["vision_features"], tensor(2))


def test_a_step_that_tells_no_recipe_is_asked_about_once_in_a_process(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1))
    store.get(KEY)
    store = open_on("a")
    asked = store.transfers.requests
    for read in (store.get, store.get, lambda key, recipe: store.get_batch([key], recipe=recipe)):
        read(KEY, recipe=RECIPE)
    assert store.transfers.requests == asked + 1


@pytest.mark.parametrize("evictions", [1, 2, 3])
@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_a_copy_that_is_evicted_before_it_is_read_is_no_miss(open_on, monkeypatch, evictions, recipe):
    store = open_on("a")
    store.put(KEY, tensor(1), recipe=recipe)
    fetch, fetched = RemoteStore._fetch, []

    def fetch_and_evict(self, key, wanted, **options):
        unkept = fetch(self, key, wanted, **options)
        fetched.append(key)
        if len(fetched) <= evictions:
            (store.root / "episode_vlm0.pt").unlink(missing_ok=True)
        return unkept

    monkeypatch.setattr(RemoteStore, "_fetch", fetch_and_evict)
    assert torch.equal(store.get(KEY, recipe=recipe), tensor(1))
    assert store.get(OTHER, recipe=recipe) is None


def _read_all(store, keys):
    for key in keys:
        store.get(key)
    store.close()


def test_reads_of_a_forked_child_are_counted_though_its_parent_read_first(open_on):
    store, keys = open_on("a"), [StepKey("episode", n) for n in range(5)]
    store.put_many(PutItem(key, tensor(1)) for key in keys)
    store.get_batch(keys)
    store.get(keys[0])
    store.close()
    before = store._tier.store.stats().hits
    child = multiprocessing.get_context("fork").Process(target=_read_all, args=(store, keys))
    child.start()
    child.join()
    assert store._tier.store.stats().hits == before + 5


@pytest.mark.parametrize("key", [KEY, VIDEO])
def test_a_recipe_that_an_object_without_a_copy_does_not_fit_names_the_object(open_on, monkeypatch, key):
    value = tensor(1) if key is KEY else {"vision_features": tensor(1)}
    open_on("a").put(key, value, recipe=RECIPE)
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", "10")
    small = open_on("small")
    with pytest.raises(RecipeMismatch, match=f"^{small.location}/{naming.relative_path(key)} was made") as caught:
        small.get(key, recipe=ANOTHER)
    assert tempfile.gettempdir() not in str(caught.value)


def test_a_batch_asks_the_service_about_what_does_not_fit(open_on):
    here, there = open_on("a"), open_on("b")
    here.put(KEY, tensor(1), recipe=RECIPE)
    here.put(OTHER, tensor(3), recipe=ANOTHER)
    here.get(KEY)
    there.put(KEY, tensor(2), recipe=ANOTHER)
    batch = here.get_batch([KEY, OTHER], recipe=ANOTHER)
    assert batch.missing == []
    assert torch.equal(batch.features, torch.stack([tensor(2), tensor(3)]))


@pytest.mark.parametrize("listing", ["entries", "stats", "keys"])
def test_any_listing_drops_copies_of_what_others_replaced_or_deleted(open_on, listing):
    here, there = open_on("a"), open_on("b")
    for key in (KEY, OTHER):
        here.put(key, tensor(1))
        here.get(key)
    there.put(KEY, tensor(2))
    there.delete(OTHER)
    found = getattr(here, listing)()
    list(found) if listing != "stats" else None
    assert torch.equal(here.get(KEY), tensor(2))
    assert here.get(OTHER) is None


def test_a_listing_leaves_current_copies_where_they_are(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1))
    store.get(KEY)
    store.stats()
    store.get(KEY)
    assert store.transfers.downloads == 1


def test_a_late_listing_hides_no_put(open_on, monkeypatch):
    store = open_on("a")
    store.put(KEY, tensor(1))
    monkeypatch.setattr(Objects, "pages", lambda self: iter([[]]))
    assert list(store.entries()) == []
    assert store.contains(KEY)
    assert store.state_of(KEY) == "present"
    assert torch.equal(store.get(KEY), tensor(1))


def test_a_damaged_copy_is_downloaded_again(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1))
    store.get(KEY)
    path = store.root / "episode_vlm0.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert torch.equal(store.get(KEY), tensor(1))
    assert store.transfers.downloads == 2


def test_a_file_system_that_gives_half_a_file_is_asked_again(open_on, monkeypatch):
    store = open_on("a")
    store.put(KEY, tensor(1))
    halves = [True]

    def cat_file(self, path, **options):
        content = whole(self, path, **options)
        return content[: len(content) // 2] if halves and halves.pop() else content

    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(first_delay_s=0.0))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert torch.equal(store.get(KEY), tensor(1))
    assert store.transfers.failed_tries == 1


def test_a_record_that_is_longer_than_the_last_bytes_is_read_whole(open_on):
    store = open_on("a")
    store.put(KEY, tensor(1), recipe=RECIPE, provenance={"frames": list(range(20_000))})
    assert [store.state_of(KEY, recipe=recipe) for recipe in (RECIPE, ANOTHER)] == ["present", "stale"]


def test_where_a_put_takes_two_steps_the_name_comes_last(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError(errno.ENOSPC, "no space")

    with FeatureStore(local_url(tmp_path / "store")) as store:
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, "mv", fail)
            with pytest.raises(StoreWriteError, match="no space"):
                store.put(KEY, tensor(1))
        assert list((tmp_path / "store").iterdir()) == []


def test_what_a_killed_writer_left_goes_a_day_later_by_the_clock_of_the_service(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    folder = tmp_path / "store"
    with FeatureStore(local_url(folder)) as store:
        store.put(KEY, tensor(1))
        store.put(VIDEO, {"vision_features": tensor(1)})
        left = [folder / naming.temp_name(), folder / "Video-MME" / naming.temp_name(), folder / "mine.txt"]
        written_s = (folder / "episode_vlm0.pt").stat().st_mtime
        for path, hours in zip(left, (25, 25, 99), strict=True):
            path.write_bytes(b"half")
            os.utime(path, (0, written_s - hours * 3600))
        left.append(folder / naming.temp_name())
        left[-1].write_bytes(b"half")  # of a writer at work
        ReadOnlyStore(store.location).size()
        assert all(path.exists() for path in left)
        assert store.size()[0] == 2
        assert [path.exists() for path in left] == [False, False, True, True]


def test_an_object_that_is_damaged_once_is_not_damaged(open_on, monkeypatch):
    store = open_on("a")
    store.put(KEY, tensor(1))
    flips = [True]

    def cat_file(self, path, **options):
        content = whole(self, path, **options)
        at = content.find(tensor(1).numpy().tobytes())
        return content[:at] + b"x" + content[at + 1 :] if flips and flips.pop() else content

    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert torch.equal(store.get(KEY), tensor(1))
    assert store.stats().damaged == 0


def test_the_limit_of_the_copies_holds_and_costs_downloads_only(open_on, monkeypatch):
    store = open_on("a")
    keys = [StepKey("episode", index) for index in range(8)]
    for index, key in enumerate(keys):
        store.put(key, tensor(index))
    size = next(store.entries()).bytes
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", str(3 * size + 10))
    small = open_on("small")
    for _ in range(2):
        for index, key in enumerate(keys):
            assert torch.equal(small.get(key), tensor(index))
    assert sum(path.stat().st_size for path in small.root.glob("*.pt")) <= 3 * size + 10
    assert torch.equal(small.get_batch(keys).features, torch.stack([tensor(index) for index in range(8)]))


def test_prefetch_downloads_what_is_missing_here_and_nothing_twice(open_on):
    store = open_on("a")
    keys = [StepKey("episode", index) for index in range(40)]
    for index, key in enumerate(keys):
        store.put(key, tensor(index))
    store.get(keys[3])
    store.prefetch((key, None) for key in [*keys, StepKey("episode", 99)])
    assert store.transfers.downloads == 40
    assert all((store.root / f"episode_vlm{index}.pt").exists() for index in range(40))


@pytest.fixture
def held(monkeypatch):
    """Downloads wait until they are let go; how many began is counted."""

    class Held:
        def __init__(self):
            self.began, self.let_go = threading.Semaphore(0), threading.Event()

    def cat_file(self, path, **options):
        content = whole(self, path, **options)
        if path.endswith(".pt"):
            held.began.release()
            assert held.let_go.wait(30)
        return content

    held, whole = Held(), MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return held


def test_threads_that_read_one_feature_download_it_once(open_on, held):
    store = open_on("a")
    store.put(KEY, tensor(1))
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(store.get, KEY) for _ in range(4)]
        assert held.began.acquire(timeout=30)
        held.let_go.set()
        assert all(torch.equal(read.result(), tensor(1)) for read in reads)
    assert store.transfers.downloads == 1


def test_what_is_replaced_while_it_is_downloaded_leaves_no_copy_of_what_it_was(open_on, held):
    store = open_on("a")
    store.put(KEY, tensor(1))
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(store.get, KEY)
        assert held.began.acquire(timeout=30)
        store.put(KEY, tensor(2))
        held.let_go.set()
        assert torch.equal(read.result(), tensor(1))
    assert torch.equal(store.get(KEY), tensor(2))


def test_what_another_process_replaces_or_deletes_while_it_is_downloaded_leaves_no_copy(open_on, held):
    store, other = open_on("a"), open_on("a")
    for key in (KEY, OTHER):
        store.put(key, tensor(1))
    with ThreadPoolExecutor(2) as pool:
        reads = [pool.submit(store.get, key) for key in (KEY, OTHER)]
        assert all(held.began.acquire(timeout=30) for _ in reads)
        other.put(KEY, tensor(2))
        other.delete(OTHER)
        held.let_go.set()
        assert all(torch.equal(read.result(), tensor(1)) for read in reads)
    assert torch.equal(other.get(KEY), tensor(2))
    assert other.get(OTHER) is None


def test_a_download_is_one_request_unless_something_was_replaced_meanwhile(open_on, monkeypatch):
    asked = []
    monkeypatch.setattr(Objects, "head", lambda self, name: asked.append(name))
    store = open_on("a")
    store.put(KEY, tensor(1))
    assert torch.equal(store.get(KEY), tensor(1))
    assert torch.equal(store.get(KEY), tensor(1))
    assert (store.transfers.downloads, asked) == (1, [])


def test_where_nothing_can_be_written_a_copy_is_deleted_all_the_same_and_others_are_warned_of_once(open_on, caplog):
    store = open_on("a")
    for number, key in enumerate((KEY, OTHER)):
        store.put(key, tensor(number))
        store.get(key)
    (store.root / naming.FORGOTTEN).unlink()
    (store.root / naming.FORGOTTEN).mkdir()
    for key in (KEY, OTHER):
        store.put(key, tensor(5))
        assert torch.equal(store.get(key), tensor(5))
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == ["copies that others make"]


def test_a_prefetch_need_not_be_waited_for_and_the_read_takes_what_it_downloads(open_on, held):
    store = open_on("a")
    store.put(KEY, tensor(1))
    store.prefetch([(KEY, None)], wait=False)
    assert held.began.acquire(timeout=30)
    held.let_go.set()
    assert torch.equal(store.get(KEY), tensor(1))
    assert store.transfers.downloads == 1


def test_a_prefetch_that_fails_is_told_by_the_read_and_gives_up_the_rest(open_on, monkeypatch):
    def refuse(self, path, **_):
        raise PermissionError(path)

    store = open_on("a")
    keys = [StepKey("episode", index) for index in range(300)]
    for key in keys:
        store.put(key, tensor(1))
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", refuse)
        asked = store.transfers.requests
        store.prefetch([(key, None) for key in keys], wait=False)
        store._pool().submit(int).result()
        assert store.transfers.requests - asked < 150
        with pytest.raises(StoreReadError, match=r"episode_vlm7\.pt"):
            store.get(keys[7])
    assert torch.equal(store.get(keys[7]), tensor(1))


def test_after_a_failed_batch_no_upload_goes_on(open_on, monkeypatch):
    begun, ended, has_failed = threading.Barrier(2), [], threading.Event()

    def put(self, path, *content):
        if path.endswith("_vlm0.pt"):
            begun.wait(30)
            has_failed.set()
            raise PermissionError(path)
        if path.endswith("_vlm1.pt"):
            begun.wait(30)
            assert has_failed.wait(30)
            time.sleep(0.2)
        whole(self, path, *content)
        ended.append(path)

    store = open_on("a")
    kind = type(store._objects())
    whole = kind._put
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_put", put)
        with pytest.raises(StoreWriteError, match=r"episode_vlm0\.pt"):
            store.put_many(PutItem(StepKey("episode", number), tensor(number)) for number in range(300))
        published = len(ended)
        assert any(path.endswith("_vlm1.pt") for path in ended)
        store._pool().submit(int).result()
        assert len(ended) == published


def test_a_create_only_batch_tells_what_it_has_published(open_on):
    store = open_on("a")
    store.put(StepKey("episode", 1), tensor(9))
    items = [PutItem(StepKey("episode", number), tensor(number)) for number in range(3)]
    with pytest.raises(EntryExists) as caught:
        store.put_many(items, create_only=True)
    there = [path for path in map(store.path_of, (item.key for item in items)) if open_on("b").describe(path.name)]
    assert set(caught.value.published) == {path for path in there if path.name != "episode_vlm1.pt"}
    assert torch.equal(store.get(StepKey("episode", 1)), tensor(9))


def test_where_copies_find_no_room_nothing_is_downloaded_ahead_of_its_read(open_on, monkeypatch):
    store = open_on("a")
    keys = [StepKey("episode", index) for index in range(4)]
    for key in keys:
        store.put(key, tensor(1))
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", "10")
    small = open_on("small")
    small.get(keys[0])
    small.prefetch((key, None) for key in keys)
    assert small.get_batch(keys).missing == []
    assert small.transfers.downloads == 1 + 4


def _read_in_a_child(store, answers):
    answers.put(store.get(KEY).sum().item())


@pytest.mark.parametrize(("method", "where"), [("fork", "s3"), ("spawn", "local")])
def test_a_store_goes_into_other_processes(tmp_path, monkeypatch, method, where):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    with FeatureStore(s3_bucket(monkeypatch) if where == "s3" else local_url(tmp_path / "store")) as store:
        store.put(KEY, tensor(1))
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        child = context.Process(target=_read_in_a_child, args=(store, answers))
        child.start()
        assert answers.get(timeout=60) == tensor(1).sum().item()
        child.join()
        assert pickle.loads(pickle.dumps(store)).location == store.location


@pytest.mark.parametrize("option", ["limit_bytes", "soft_limit_bytes"])
def test_a_limit_is_refused_and_never_ignored(open_on, option):
    with pytest.raises(LocalOnly, match="no size limit; call prune"):
        open_on("a", **{option: 10})
    open_on("a", limit_bytes=0)


def test_what_a_remote_root_cannot_do_is_refused_by_name(open_on):
    store = open_on("a")
    for ask in (lambda: store.pin(["episode"]), store.pack, store.unpack, lambda: store.prune(unused_for_s=1)):
        with pytest.raises(LocalOnly):
            ask()


def test_every_method_of_a_store_is_answered_for_a_remote_root(open_on):
    # What is inherited looks at no file: it asks what a remote root answers itself.
    inherited = {"clear", "contains", "contains_each", "entries", "eviction_for", "limit_bytes", "put_batch",
                 "record_of", "record_of_each", "remember_plan", "size", "soft_limit_bytes",
                 "video_path_of"}  # fmt: skip
    public = {name for name in dir(FeatureStore) if not name.startswith("_")}
    defined = {name for one in type(open_on("a")).__mro__[:3] for name in vars(one)}
    assert public - defined == inherited


def test_the_records_of_a_video_are_told_for_each_recipe(open_on):
    store, key = open_on("a"), VideoKey("Video-MME", "v", 4, "0" * 8)
    assert list(store.records_of(key)) == []
    for weights in "ab":
        value = {"vision_features": torch.zeros(4, 2, 3), "video_id": "v"}
        store.put(key, value, recipe={"weights": weights})
    assert [record.recipe for record in store.records_of(key)] == [{"weights": "a"}, {"weights": "b"}]
    alias = VideoKey("Video-MME_128frame", "v", 4, "0" * 8)
    for weights in "cd":
        store.put(alias, {"vision_features": torch.zeros(4, 2, 3), "video_id": "v"}, recipe={"weights": weights})
    assert [record.recipe["weights"] for record in store.records_of(key)] == ["a", "c", "b", "d"]
    assert {record.name for record in store.records_of(key)} == {entry.name for entry in store.entries()}


def test_records_are_those_of_copies_and_then_what_else_the_service_has(open_on):
    here, there = open_on("a"), open_on("b")
    here.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    here.get(VIDEO)
    asked = here.transfers.requests
    assert next(here.records_of(VIDEO)).recipe == RECIPE
    assert here.transfers.requests == asked
    assert [record.recipe for record in here.records_of(VIDEO)] == [RECIPE]
    there.clear()
    there.put(VIDEO, {"vision_features": tensor(2)}, recipe=ANOTHER)
    assert [record.recipe for record in here.records_of(VIDEO)] == [RECIPE, ANOTHER]
    assert torch.equal(here.get(VIDEO, recipe=ANOTHER)["vision_features"], tensor(2))
    assert [record.recipe for record in here.records_of(VIDEO)] == [ANOTHER]


def test_an_unknown_protocol_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(StoreFormatError, match="nonsense"):
        FeatureStore("nonsense://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StoreFormatError, match=r"vlm-cache\[remote\]"):
        FeatureStore("s3://a/b")


def test_a_listing_keeps_a_page_of_objects_in_memory_beside_the_table(open_on, monkeypatch):
    def pages(self):
        for start in range(0, 40_000, 1000):
            yield [ObjectInfo(f"e_vlm{at}.pt", 7000, at * 1_000_000, "tag") for at in range(start, start + 1000)]

    store = open_on("a")
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "pages", pages)
        tracemalloc.start()
        assert store.size() == (40_000, 280_000_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20  # as Python's objects all of them would take 20 MB


def test_missing_videos_are_told_by_the_listing_alone(open_on):
    store = open_on("a")
    store.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    asked = store.transfers.requests
    assert store.size()[0] == 1
    listing = store.transfers.requests - asked
    keys = [replace(VIDEO, video_id=f"missing {number}") for number in range(10)]
    for recipe in (RECIPE, None):
        asked = store.transfers.requests
        assert list(store.states((key, recipe) for key in keys)) == ["missing"] * 10
        assert store.transfers.requests - asked == listing
    assert list(store.states([(VIDEO, RECIPE), (VIDEO, ANOTHER), (keys[0], RECIPE)])) == ["present", "stale", "missing"]


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("2KiB", 2048), ("1.5 GB", 1_500_000_000), ("0", 0)])
def test_the_limit_of_the_copies_is_a_size(monkeypatch, text, size):
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", text)
    assert tiers.limit_bytes() == size
    for no_size in ("lots", "9" * 400):
        monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", no_size)
        with pytest.raises(StoreFormatError, match=rf"\$VLM_CACHE_TIER_LIMIT: '{no_size}' is no size"):
            tiers.limit_bytes()


def test_a_video_in_two_recipes_has_one_owner_on_all_machines(open_on):
    here, there = open_on("a"), open_on("b")
    here.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    there.put(VIDEO, {"vision_features": tensor(2)}, recipe=ANOTHER)
    assert torch.equal(here.get(VIDEO)["vision_features"], tensor(1))
    assert torch.equal(here.get(VIDEO, recipe=ANOTHER)["vision_features"], tensor(2))
    assert {entry.dataset.partition("@")[0] for entry in here.entries()} == {"Video-MME"}
    here.clear()
    there = open_on("c")
    there.put(VIDEO, {"vision_features": tensor(2)}, recipe=ANOTHER)
    assert torch.equal(there.get(VIDEO)["vision_features"], tensor(2))


def test_a_recipe_leaves_a_family_alone_that_another_one_has_got_since(open_on, monkeypatch):
    here, there = open_on("a"), open_on("b")
    here.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    there.prune(recipe_fingerprint=recipe_fingerprint(RECIPE))
    there.put(VIDEO, {"vision_features": tensor(2)}, recipe=ANOTHER)
    now_s = owners.monotonic()
    monkeypatch.setattr(owners, "monotonic", lambda: now_s + 3)
    here.put(VIDEO, {"vision_features": tensor(1)}, recipe=RECIPE)
    for machine in ("b", "c"):
        store = open_on(machine)
        assert torch.equal(store.get(VIDEO, recipe=ANOTHER)["vision_features"], tensor(2))
        assert torch.equal(store.get(VIDEO, recipe=RECIPE)["vision_features"], tensor(1))


def test_objects_that_tell_no_recipe_are_read_once_for_many_keys_that_are_asked_about(open_on, monkeypatch):
    store = open_on("a")
    keys = [replace(VIDEO, video_id=f"v{number}") for number in range(20)]
    for key in keys:
        store.put(key, {"vision_features": tensor(1)})
    now_s, asked = owners.monotonic(), store.transfers.requests
    monkeypatch.setattr(owners, "monotonic", lambda: now_s)
    assert {store.path_of(key, recipe=RECIPE).parent.name for key in keys} == {"Video-MME"}
    assert store.transfers.requests - asked < 3 * len(keys)
    assert store.put(VIDEO, {"vision_features": tensor(2)}, recipe=RECIPE).parent.name == "Video-MME"
    assert {store.path_of(key, recipe=ANOTHER).parent.name for key in keys} != {"Video-MME"}


def test_a_buffer_that_does_not_fit_is_refused_where_copies_find_no_room(open_on, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", "100")
    store = open_on("a")
    store.put_many([PutItem(KEY, tensor(1)), PutItem(OTHER, tensor(2, width=32))])
    for out in (torch.empty(1, 7), torch.empty(1, 1, 1, 64), torch.empty(1, 1, 1, 32, dtype=torch.float16)):
        with pytest.raises(ValueError, match="the batch"):
            store.get_batch([KEY], out=out)
    out = torch.empty(1, 1, 1, 64, dtype=torch.float16)
    assert store.get_batch([KEY], out=out).features is out
    with pytest.raises(ValueError, match="the batch"):
        store.get_batch([KEY, OTHER])


def test_a_sample_is_downloaded_alone_and_is_the_one_of_a_folder(open_on, tmp_path):
    store = open_on("a")
    with FeatureStore(tmp_path / "local") as local:
        for index in range(6):
            for one in (store, local):
                one.put(StepKey("episode", index), tensor(index))
        for index in range(6):
            (tmp_path / "local" / f"episode_vlm{index}.pt").write_bytes(b"damaged")
        drawn = {problem.path for problem in local.verify(sample=2, seed=3, repair=True).problems}
    before = store.transfers.downloads
    report = store.verify(sample=2, seed=3)
    assert (report.checked, report.seed, store.transfers.downloads) == (2, 3, before + 2)
    for name in drawn:
        store._objects().put(name, b"damaged")
    assert {problem.path for problem in store.verify(sample=2, seed=3, repair=True).problems} == drawn
