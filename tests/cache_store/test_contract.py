"""What every backend of a store must do. A new backend (packed, remote) is one more line in BACKENDS."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from cache_store import (
    EntryExists,
    FeatureStore,
    InexactFeature,
    InvalidKey,
    PutItem,
    RecipeMismatch,
    StepKey,
    StoreFull,
    VideoKey,
    int8,
    recipe_fingerprint,
)
from cache_store.remote.objects import open_objects
from cache_store.remote.tier import folder_of
from tests.cache_store.conftest import local_url, tensor
from tests.cache_store.remote.s3_server import s3_bucket

STEP, OTHER, HASHED = StepKey("episode", 0), StepKey("episode", 30), StepKey("episode", 0, "0a1b2c3d")
VIDEO = VideoKey("Video-MME", "fFjv93ACGo8", 4, "0a1b2c3d")
KEYS = [STEP, OTHER, HASHED, VIDEO, VideoKey("Video-MME", "fFjv93ACGo8", 8, "0a1b2c3d"), StepKey("a_vlm3", 7)]
RECIPE, ANOTHER = {"weights": "a"}, {"weights": "b"}


@dataclass
class Backend:
    """A way to keep a store; `disturb` is called before each operation of the tests' own."""

    root: Path | str
    loses_books: bool = False
    repacks: Callable[[FeatureStore], object] | None = None
    loses_copies: bool = False

    @property
    def is_remote(self) -> bool:
        return isinstance(self.root, str)

    def open(self, **options) -> FeatureStore:
        self.disturb()
        return FeatureStore(self.root, **options)

    def disturb(self) -> None:
        if self.loses_books:
            shutil.rmtree(self.root / ".vlm-cache", ignore_errors=True)
        if self.repacks is not None:
            with FeatureStore(self.root) as store:
                self.repacks(store)
        if self.loses_copies:
            shutil.rmtree(folder_of(self.root, open_objects(self.root).service), ignore_errors=True)

    def damage(self, name: str, content: bytes) -> None:
        """Flip a bit of the first place where a feature's file has this content."""
        if isinstance(self.root, Path):
            (self.root / name).write_bytes(flipped((self.root / name).read_bytes(), content))
        else:
            objects = open_objects(self.root)
            objects.put(name, objects.get(name, lambda found, _: flipped(found, content)))


def flipped(found: bytes, content: bytes) -> bytes:
    at = found.find(content) + 5
    return found[:at] + bytes([found[at] ^ 1]) + found[at + 1 :]


def on_disk(tmp_path, monkeypatch):
    return Backend(tmp_path / "store")


def without_working_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("filelock._unix.fcntl.flock", lambda *_: None)
    return Backend(tmp_path / "store")


def without_any_locks(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock._unix.fcntl.flock", unknown)
    return Backend(tmp_path / "store")


def that_loses_its_books(tmp_path, monkeypatch):
    return Backend(tmp_path / "store", loses_books=True)


def written_by_plain_torch_save(tmp_path, monkeypatch):
    monkeypatch.setattr("cache_store.codec._torch_reads_our_layout", lambda: False)
    return Backend(tmp_path / "store")


def packed(tmp_path, monkeypatch):
    return Backend(tmp_path / "store", repacks=FeatureStore.pack)


def packed_with_its_files_kept(tmp_path, monkeypatch):
    return Backend(tmp_path / "store", repacks=pack_beside)


def pack_beside(store):
    with suppress(StoreFull):  # where a test's limit leaves no room for copies
        store.pack(keep=True)


def packed_and_unpacked_in_turns(tmp_path, monkeypatch):
    return Backend(tmp_path / "store", repacks=lambda store: (store.unpack if packed_in(store) else store.pack)())


def packed_where_nothing_may_be_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("cache_store.shard_file.is_on_local_disk", lambda *_: False)
    return Backend(tmp_path / "store", repacks=FeatureStore.pack)


def packed_that_loses_its_books(tmp_path, monkeypatch):
    return Backend(tmp_path / "store", repacks=FeatureStore.pack, loses_books=True)


def in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    return Backend(f"memory://{tmp_path.name}/store")


def in_memory_where_copies_are_lost(tmp_path, monkeypatch):
    return replace(in_memory(tmp_path, monkeypatch), loses_copies=True)


def in_memory_where_no_copy_finds_room(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER_LIMIT", "1B")
    return in_memory(tmp_path, monkeypatch)


def on_a_file_system_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    return Backend(local_url(tmp_path / "store"))


def on_s3(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    return Backend(f"{s3_bucket(monkeypatch)}/{tmp_path.name}")


def packed_in(store):
    return list(store.root.glob("packed/*.arrow"))


BACKENDS = [
    on_disk,
    without_working_locks,
    without_any_locks,
    that_loses_its_books,
    written_by_plain_torch_save,
    packed,
    packed_with_its_files_kept,
    packed_and_unpacked_in_turns,
    packed_where_nothing_may_be_mapped,
    packed_that_loses_its_books,
    in_memory,
    in_memory_where_copies_are_lost,
    in_memory_where_no_copy_finds_room,
    on_a_file_system_of_files,
    on_s3,
]


@pytest.fixture(params=BACKENDS, ids=lambda make: make.__name__)
def backend(request, tmp_path, monkeypatch):
    made = request.param(tmp_path, monkeypatch)
    yield made
    with made.open() as store:
        problems = store.verify(workers=1, repair=made.is_remote).problems  # a reader sets aside no object
        assert store.verify(workers=1).problems == []
        assert made.is_remote or problems == []
        stats = store.stats()
        assert stats.entries == len(list(store.entries()))
        assert stats.bytes == sum(entry.bytes for entry in store.entries())


def value_of(key, seed):
    if isinstance(key, VideoKey):
        return {"vision_features": tensor(seed, width=4 * 16).reshape(4, 16), "video_id": key.video_id}
    return tensor(seed)


def same(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def test_what_is_put_is_read_by_any_later_store(backend):
    with backend.open() as store:
        for seed, key in enumerate(KEYS):
            store.put(key, value_of(key, seed))
    with backend.open() as store:
        for seed, key in enumerate(KEYS):
            backend.disturb()
            assert same(store.get(key), value_of(key, seed))
        assert set(store.keys()) == set(KEYS)
        assert store.get(StepKey("episode", 1)) is None


def test_a_put_replaces_and_create_only_does_not(backend):
    with backend.open() as store:
        store.put(STEP, tensor(1))
        store.put(STEP, tensor(2))
        backend.disturb()
        with pytest.raises(EntryExists):
            store.put(STEP, tensor(3), create_only=True)
        assert same(store.get(STEP), tensor(2))


def test_a_batch_is_read_back_like_single_puts(backend):
    with backend.open() as store:
        store.put_many([PutItem(key, value_of(key, seed), RECIPE) for seed, key in enumerate(KEYS)])
        backend.disturb()
        for seed, key in enumerate(KEYS):
            assert same(store.get(key, recipe=RECIPE), value_of(key, seed))
        assert list(store.states((key, RECIPE) for key in KEYS)) == ["present"] * len(KEYS)


def test_rows_of_a_tensor_are_read_back_like_single_puts(backend):
    steps = [key for key in KEYS if isinstance(key, StepKey)]
    with backend.open() as store:
        store.put(OTHER, tensor(9), recipe=ANOTHER)
        backend.disturb()
        store.put_batch(steps, torch.stack([value_of(key, seed) for seed, key in enumerate(steps)]), recipe=RECIPE)
        backend.disturb()
        for seed, key in enumerate(steps):
            assert same(store.get(key, recipe=RECIPE), value_of(key, seed))
        assert list(store.states((key, RECIPE) for key in steps)) == ["present"] * len(steps)
        assert store.stats().entries == len(steps)
        assert store.verify().problems == []


def test_a_batch_that_only_creates_replaces_nothing(backend):
    with backend.open() as store:
        store.put(OTHER, tensor(1))
        backend.disturb()
        with pytest.raises(EntryExists):
            store.put_many([PutItem(STEP, tensor(2)), PutItem(OTHER, tensor(3))], create_only=True)
        assert same(store.get(OTHER), tensor(1))
        store.delete(STEP)
        store.put_many([PutItem(STEP, tensor(4))], create_only=True)
        assert same(store.get(STEP), tensor(4))
        assert store.verify().problems == []


def test_a_deleted_feature_is_gone_and_the_others_stay(backend):
    with backend.open() as store:
        store.put(STEP, tensor(1))
        store.put(OTHER, tensor(2))
        backend.disturb()
        assert store.delete(STEP)
        assert not store.delete(STEP)
        assert store.get(STEP) is None
        assert same(store.get(OTHER), tensor(2))


def test_another_recipe_of_a_step_is_an_error_a_miss_or_used_as_the_reader_says(backend):
    with backend.open() as store:
        store.put(STEP, tensor(1), recipe=RECIPE)
        backend.disturb()
        with pytest.raises(RecipeMismatch, match="weights"):
            store.get(STEP, recipe=ANOTHER)
        assert store.get(STEP, recipe=ANOTHER, on_stale="miss") is None
        assert same(store.get(STEP, recipe=ANOTHER, on_stale="use"), tensor(1))
        assert [store.state_of(STEP, recipe=recipe) for recipe in (None, RECIPE, ANOTHER)] == ["present"] * 2 + [
            "stale"
        ]


def test_a_second_recipe_of_a_video_lies_beside_the_first(backend):
    with backend.open() as store:
        store.put(VIDEO, value_of(VIDEO, 1), recipe=RECIPE)
        backend.disturb()
        store.put(VIDEO, value_of(VIDEO, 2), recipe=ANOTHER)
        backend.disturb()
        assert same(store.get(VIDEO, recipe=RECIPE), value_of(VIDEO, 1))
        assert same(store.get(VIDEO, recipe=ANOTHER), value_of(VIDEO, 2))
        assert same(store.get(VIDEO), value_of(VIDEO, 1))


def test_a_second_recipe_is_put_where_it_is_when_the_first_one_is_pruned(backend):
    with backend.open() as store:
        for seed, recipe in enumerate((RECIPE, ANOTHER)):
            store.put(VIDEO, value_of(VIDEO, seed), recipe=recipe)
        backend.disturb()
        store.prune(recipe_fingerprint=recipe_fingerprint(RECIPE))
        store.put(VIDEO, value_of(VIDEO, 2), recipe=ANOTHER)
        assert same(store.get(VIDEO, recipe=ANOTHER), value_of(VIDEO, 2))
        assert store.delete(VIDEO, recipe=ANOTHER)
        assert not store.contains(VIDEO, recipe=ANOTHER)
        store.put(VIDEO, value_of(VIDEO, 3), recipe=ANOTHER)
        store.clear()
        assert store.put(VIDEO, value_of(VIDEO, 4), recipe=ANOTHER).parent.name == VIDEO.dataset


def test_parts_buffers_and_maps_give_the_bits_of_the_whole(backend):
    with backend.open() as store:
        store.put(VIDEO, value_of(VIDEO, 1))
        whole = store.get(VIDEO)["vision_features"]
        out = torch.empty_like(whole)
        assert store.get(VIDEO, out=out)["vision_features"] is out
        assert torch.equal(out, whole)
        assert torch.equal(store.get(VIDEO, frames=[3, 0])["vision_features"], whole[[3, 0]])
        assert torch.equal(store.get(VIDEO, mmap=True)["vision_features"], whole)


def test_int8_is_read_in_any_dtype_in_parts_and_never_as_exact(backend):
    recipe = {**RECIPE, "storage": dict(int8.STORAGE)}
    exact = value_of(VIDEO, 1)["vision_features"]
    with backend.open() as store:
        store.put_many([PutItem(VIDEO, value_of(VIDEO, 1), recipe)])
        backend.disturb()
        found = store.get(VIDEO, recipe=recipe)["vision_features"]
        assert torch.allclose(found.float(), exact.float(), atol=exact.abs().max().item() / 250)
        assert not torch.equal(found, exact)
        out = torch.empty(2, 16)
        assert torch.equal(store.get(VIDEO, frames=[3, 0], out=out)["vision_features"].half(), found[[3, 0]])
        assert same(store.get(VIDEO, dtype=torch.float16)["vision_features"], found)
        with pytest.raises(InexactFeature):
            store.get(VIDEO, exact=True)
        with pytest.raises(RecipeMismatch, match="storage"):
            store.get(VIDEO, recipe=RECIPE)


def test_the_limit_holds_and_the_newest_entries_stay(backend):
    if backend.loses_books or backend.is_remote:
        pytest.skip("read times are in the books; a remote root refuses a limit, as test_remote.py shows")
    with backend.open() as store:
        size = store.put(STEP, tensor(0)).stat().st_size
        store.set_limit(5 * size)
        for index in range(1, 20):
            store.put(StepKey("episode", index), tensor(index))
            assert store.stats().bytes <= 5 * size
        assert store.contains(StepKey("episode", 19))
        with pytest.raises(StoreFull):
            store.put(StepKey("large", 0), tensor(0, width=100_000))


def test_pinned_and_leased_entries_are_not_evicted(backend):
    if backend.loses_books or backend.is_remote:
        pytest.skip("pins are in the books; nothing is evicted from a remote root")
    with backend.open() as store:
        size = store.put(StepKey("pinned", 0), tensor(0)).stat().st_size
        store.put(StepKey("held", 0), tensor(1))
        store.pin(["pinned"])
        store.set_limit(4 * size)
        with store.reading(keys=[StepKey("held", 0)]):
            for index in range(10):
                store.put(StepKey("episode", index), tensor(index))
            assert store.contains(StepKey("held", 0))
        for index in range(10, 20):
            store.put(StepKey("episode", index), tensor(index))
        assert store.contains(StepKey("pinned", 0))
        assert not store.contains(StepKey("held", 0))


def test_prune_and_clear_delete_what_they_say(backend):
    with backend.open() as store:
        for seed, key in enumerate(KEYS):
            store.put(key, value_of(key, seed), recipe=RECIPE)
        backend.disturb()
        assert len(store.prune(datasets=["episode"], dry_run=True).deleted) == 3
        assert len(store.prune(datasets=["episode"]).deleted) == 3
        assert {key.dataset for key in store.keys()} == {"Video-MME", "a_vlm3"}
        store.clear()
        assert list(store.keys()) == []


def test_a_damaged_feature_is_a_counted_miss_that_verify_names(backend):
    with backend.open() as store:
        store.put(OTHER, tensor(2))
        store.put(STEP, tensor(1))
        backend.damage("episode_vlm0.pt", tensor(1).numpy().tobytes())
        assert [problem.path for problem in store.verify(workers=1).problems] == ["episode_vlm0.pt"]
        assert store.get(STEP) is None
        if not backend.loses_copies:  # they are counted beside the copies
            assert store.stats().damaged >= 1
        assert same(store.get(OTHER), tensor(2))


@pytest.mark.parametrize("dataset", ["../x", "/x", "a\0b", "x" * 5000, "", ".x", "a@b", "a/b", "a\nb"])
def test_a_hostile_name_is_refused(backend, dataset):
    with backend.open() as store:
        for key in (StepKey(dataset, 0), VideoKey(dataset, "v", 8, "0" * 8)):
            with pytest.raises(InvalidKey):
                store.put(key, tensor(0))
            with pytest.raises(InvalidKey):
                store.get(key)
