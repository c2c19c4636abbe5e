"""The store's promises to readers and writers, one process or several."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile

import pytest
import torch

from cache_store import FeatureStore, RecipeMismatch, StepKey, StoreFormatError, VideoKey, scan
from tests.cache_store.conftest import published_bytes, tensor

KEY = StepKey("episode", 0)
VIDEO = VideoKey("Video-MME", "abc", 8, "0123abcd")
RECIPE = {"layer": -2, "dtype": "float16"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def video_feature(seed):
    features = tensor(seed).reshape(1, 8, 8)
    return {"vision_features": features, "video_id": "abc", "nframe": 8, "dtype": "float16"}


def test_a_step_is_where_the_contract_says_and_plain_torch_load_reads_it(store, tmp_path):
    store.put(KEY, tensor(1), recipe=RECIPE)
    loaded = torch.load(tmp_path / "store" / "episode_vlm0.pt", weights_only=True)
    assert torch.equal(loaded, tensor(1))
    assert loaded.dtype == torch.float16


def test_a_video_is_where_the_contract_says_and_plain_torch_load_reads_it(store, tmp_path):
    store.put(VIDEO, video_feature(1), recipe=RECIPE)
    digest = hashlib.md5(b"Video-MME:abc:nframe8:model0123abcd").hexdigest()
    loaded = torch.load(tmp_path / "store" / "Video-MME" / f"{digest}.pt", weights_only=True)
    assert list(loaded) == ["vision_features", "video_id", "nframe", "dtype"]
    assert torch.equal(loaded["vision_features"], video_feature(1)["vision_features"])


def test_equal_inputs_give_equal_files_in_any_folder_and_order(open_store):
    first, second = open_store("a", run_id="r1"), open_store("deeper/b", limit_bytes=10**6)
    keys = [StepKey("episode", index) for index in range(4)]
    for key in keys:
        first.put(key, tensor(key.vlm_idx), recipe=RECIPE)
    for key in [*reversed(keys), *keys]:
        second.put(key, tensor(key.vlm_idx), recipe=dict(reversed(RECIPE.items())))
    for key in keys:
        assert sha256(first.path_of(key)) == sha256(second.path_of(key))


def test_get_put_contains_delete_and_keys_agree(store):
    assert store.get(KEY) is None
    assert not store.contains(KEY)
    store.put(KEY, tensor(1))
    store.put(KEY, tensor(2))
    store.put(VIDEO, video_feature(3))
    assert torch.equal(store.get(KEY), tensor(2))
    assert list(store.keys()) == [VIDEO, KEY]
    assert list(store.keys("episode")) == [KEY]
    assert store.delete(KEY)
    assert not store.delete(KEY)
    assert store.state_of(KEY) == "missing"


def test_none_is_refused_because_it_means_a_miss(store):
    with pytest.raises(TypeError, match="miss"):
        store.put(KEY, None)


def test_the_reader_chooses_what_another_recipe_means(store):
    store.put(KEY, tensor(1), recipe=RECIPE)
    other = {**RECIPE, "layer": -1}
    assert store.state_of(KEY, recipe=RECIPE) == "present"
    assert store.state_of(KEY, recipe=other) == "stale"
    assert not store.contains(KEY, recipe=other)
    with pytest.raises(RecipeMismatch, match="layer: found -2, wanted -1") as caught:
        store.get(KEY, recipe=other)
    assert pickle.loads(pickle.dumps(caught.value)).differences == caught.value.differences
    assert store.get(KEY, recipe=other, on_stale="miss") is None
    assert torch.equal(store.get(KEY, recipe=other, on_stale="use"), tensor(1))
    with pytest.raises(ValueError, match="on_stale"):
        store.get(KEY, on_stale="ignore")


def test_a_file_without_a_recipe_fits_any(store, tmp_path):
    torch.save(tensor(1), tmp_path / "store" / "episode_vlm0.pt")
    assert torch.equal(store.get(KEY, recipe=RECIPE), tensor(1))
    assert store.state_of(KEY, recipe=RECIPE) == "present"


def damage(path, how):
    sound = path.read_bytes()
    middle = sound.find(tensor(1).numpy().tobytes()) + 5
    if how == "flipped":
        path.write_bytes(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
    elif how == "truncated":
        path.write_bytes(sound[:middle])
    else:
        path.write_bytes(bytes(len(sound)))


@pytest.mark.parametrize("how", ["flipped", "truncated", "zeroed"])
def test_a_damaged_file_is_a_counted_miss_and_set_aside(store, caplog, how):
    path = store.put(KEY, tensor(1))
    damage(path, how)
    damaged = path.read_bytes()
    assert [problem.path for problem in store.verify().problems] == ["episode_vlm0.pt"]
    assert store.get(KEY) is None
    assert "is damaged" in caplog.text
    assert not path.exists()
    (kept,) = (store.root / ".vlm-cache" / "quarantine").iterdir()
    assert kept.read_bytes() == damaged
    assert kept.suffix != ".pt"
    stats = store.stats()
    assert (stats.entries, stats.bytes, stats.misses, stats.damaged) == (0, 0, 1, 1)
    store.put(KEY, tensor(1))
    assert torch.equal(store.get(KEY), tensor(1))


def test_a_damaged_file_counts_as_missing_for_a_resumed_build(store):
    path = store.put(KEY, tensor(1), recipe=RECIPE)
    damage(path, "truncated")
    assert store.state_of(KEY, recipe=RECIPE) == "missing"
    store.get(KEY)


def test_a_file_replaced_while_a_reader_judged_it_is_not_set_aside(store, monkeypatch):
    path = store.put(KEY, tensor(1))
    damage(path, "flipped")
    from cache_store import reader

    real, calls = reader.load, []

    def load_late(archive, how):
        calls.append(archive)
        if len(calls) == 1:
            store.put(KEY, tensor(2))
        return real(archive, how)

    monkeypatch.setattr(reader, "load", load_late)
    assert torch.equal(store.get(KEY), tensor(2))


def _put_many(store, barrier, seed):
    barrier.wait()
    for _ in range(20):
        store.put(KEY, tensor(seed))
    store.close()


def test_two_processes_putting_one_key_leave_one_whole_feature(store):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_put_many, args=(store, barrier, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    value = store.get(KEY)
    assert torch.equal(value, tensor(1)) or torch.equal(value, tensor(2))
    assert store.stats().entries == 1


def test_a_store_reopens_where_it_is_unpickled(store):
    store.set_limit(10**6)
    store.put(KEY, tensor(1))
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.get(KEY), tensor(1))
    assert (copy.root, copy.limit_bytes) == (store.root, 10**6)
    copy.close()


def test_aliases_of_a_benchmark_are_found_under_their_own_folder_and_md5(store):
    digest = hashlib.md5(b"Video-MME_128frame:abc:nframe8:model0123abcd").hexdigest()
    folder = store.root / "Video-MME_128frame"
    folder.mkdir()
    torch.save(video_feature(1), folder / f"{digest}.pt")
    assert store.contains(VIDEO)
    assert store.get(VIDEO)["video_id"] == "abc"
    assert store.get(VideoKey("videomme", "abc", 8, "0123abcd")) is not None
    assert store.stats().hits == 2


def test_cache_meta_tells_the_video_features_and_is_rebuilt(open_store):
    with open_store() as store:
        store.put(VIDEO, video_feature(1), recipe=RECIPE)
        store.put(KEY, tensor(1))
    path = store.root / "cache_meta.json"
    size = store.path_of(VIDEO).stat().st_size
    expected = {
        "version": "1.0",
        "dtype": "float16",
        "compression": "none",
        "total_samples": 1,
        "total_size_bytes": size,
        "datasets": {"Video-MME": {"count": 1, "size_bytes": size}},
    }
    assert json.loads(path.read_text()) == expected
    path.write_text("{")
    store.flush_meta()
    assert json.loads(path.read_text()) == {**expected, "dtype": "unknown"}


def test_prune_deletes_what_meets_every_condition_and_a_dry_run_nothing(store):
    for index in range(3):
        store.put(StepKey("old", index), tensor(index))
    store.put(VIDEO, video_feature(1), recipe=RECIPE)
    for index in range(3):
        os.utime(store.path_of(StepKey("old", index)), (0, 0))
    shutil.rmtree(store.root / ".vlm-cache")
    planned = store.prune(datasets=["old", "Video-MME"], older_than_s=3600, dry_run=True)
    assert [entry.name for entry in planned.deleted] == ["old_vlm0.pt", "old_vlm1.pt", "old_vlm2.pt"]
    assert store.stats().entries == 4
    assert store.prune(model="ffffffff").deleted == []
    assert len(store.prune(model="0123abcd", recipe_fingerprint="0" * 8).deleted) == 0
    size = store.path_of(StepKey("old", 0)).stat().st_size
    report = store.prune(datasets=["old"], down_to_bytes=store.stats().bytes - size)
    assert (len(report.deleted), report.bytes) == (1, size)
    assert len(store.prune(model="0123abcd").deleted) == 1
    with pytest.raises(ValueError, match="clear"):
        store.prune()
    assert len(store.clear().deleted) == 2
    assert list(store.keys()) == []


def test_abandoned_temporary_files_are_swept_after_a_day(store):
    store.put(KEY, tensor(1))
    young, old = store.root / ".vlm-tmp-young", store.root / ".vlm-tmp-old"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.stats()
    assert young.exists()
    assert not old.exists()


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFormatError, match="give a folder"):
        FeatureStore(tmp_path / "file")


def test_a_store_of_a_newer_version_is_refused_and_damaged_settings_are_not(tmp_path, open_store):
    settings = tmp_path / "store" / ".vlm-cache" / "store.json"
    settings.parent.mkdir(parents=True)
    for newer in ('{"format": 99, "limit_bytes": 1}', '{"format": 99}'):
        settings.write_text(newer)
        with pytest.raises(StoreFormatError, match="newer"):
            FeatureStore(tmp_path / "store")
    settings.write_text("{")
    assert open_store().limit_bytes is None


def _read_as_nobody(root, results):
    os.setgid(65534)
    os.setuid(65534)
    store = FeatureStore(root, limit_bytes=10**9)
    value = store.get(KEY)
    missing = store.get(StepKey("episode", 1))
    stats = store.stats()
    store.close()
    results.put((torch.equal(value, tensor(1)), missing, stats.entries, len(store.verify().problems)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not write")
@pytest.mark.parametrize("has_books", [True, False])
def test_a_read_only_store_is_readable(has_books):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        store = FeatureStore(folder)
        store.put(KEY, tensor(1))
        store.stats()
        store.close()
        if not has_books:
            shutil.rmtree(store.root / ".vlm-cache")
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        reader = context.Process(target=_read_as_nobody, args=(folder, results))
        reader.start()
        assert results.get(timeout=60) == (True, None, 1, 0)
        reader.join()


def _make_pipe(path):
    os.mkfifo(path)


def _make_endless_link(path):
    path.symlink_to("/dev/zero")


def _make_looping_link(path):
    path.symlink_to(path.name)


def _make_dangling_link(path):
    path.symlink_to("nowhere")


@pytest.fixture
def _no_waiting():
    def give_up(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("make", [_make_pipe, _make_endless_link, _make_looping_link, _make_dangling_link, os.mkdir])
def test_what_is_no_file_is_no_feature_and_stops_nobody(open_store, make):
    store = open_store(limit_bytes=10**6)
    store.put(StepKey("first", 0), tensor(1))
    make(store.root / "first_vlm1.pt")
    assert store.get(StepKey("first", 1)) is None
    assert store.get_batch([StepKey("first", 0), StepKey("first", 1)])[1] == [1]
    make(store.root / "first_vlm2.pt")
    make(store.root / ".vlm-cache" / "journals.2" / f"{'a' * 32}.journal")
    make(store.root / ".vlm-cache" / "snapshot.1000")
    open_files = len(os.listdir("/proc/self/fd"))
    assert store.stats().entries == 1
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert "first_vlm2.pt" in [problem.path for problem in store.verify().problems]
    again = open_store()
    again.put(StepKey("first", 3), tensor(3))
    assert again.stats().entries == 2
    # The fixture verifies what the test leaves.
    for path in store.root.glob("first_vlm[12].pt"):
        path.rmdir() if path.is_dir() else path.unlink()


def test_an_entry_published_during_the_listing_is_not_lost(store, monkeypatch):
    store.put(StepKey("first", 0), tensor(1))
    real = scan.names_on_disk

    def listing_before_a_put(root):
        names = real(root)
        store.put(KEY, tensor(2))
        return names

    monkeypatch.setattr(scan, "names_on_disk", listing_before_a_put)
    assert store.stats().entries == 2


def test_a_store_says_its_format_from_its_first_put_on_and_keeps_its_limit(open_store):
    settings = "store/.vlm-cache/store.json"
    first = open_store()
    assert not (first.root.parent / settings).exists()
    second = open_store(limit_bytes=10**6)
    first.put(KEY, tensor(1))
    assert json.loads((first.root.parent / settings).read_bytes()) == {
        "format": 2,
        "limit_bytes": 10**6,
        "soft_limit_bytes": None,
    }
    assert second.get(KEY) is not None


def test_a_store_of_format_1_is_read_and_becomes_one_of_format_2_with_its_first_put(open_store):
    store = open_store()
    torch.save(tensor(1), store.root / "old_vlm0.pt")
    old = store.root / ".vlm-cache"
    (old / "journals").mkdir(parents=True)
    (old / "journals" / "a.journal").write_bytes(
        b"o\t0\t1\thost\t1\t1\t\np\t9999\t1763000000000000\t9999\t1\t\t\t0\told_vlm0.pt\n"
    )
    (old / "snapshot").write_bytes(b'{"format":1,"counters":{},"journals":{},"published_bytes":5,"reserved_bytes":0}\n')
    (old / "store.json").write_bytes(b'{"format": 1, "limit_bytes": 1000000}\n')
    again = open_store()
    assert again.limit_bytes == 10**6
    assert torch.equal(again.get(StepKey("old", 0)), tensor(1))
    assert again.stats().bytes == published_bytes(store.root)
    assert (old / "journals").exists()
    again.put(KEY, tensor(2))
    assert json.loads((old / "store.json").read_bytes())["format"] == 2
    assert open_store().limit_bytes == 10**6
    assert not (old / "journals").exists()
    assert again.stats().entries == 2
