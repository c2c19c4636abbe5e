"""A service that fails costs tries, never a wrong answer: faults are injected before the server, and counted."""

from __future__ import annotations

import pytest
import torch

from cache_store import EntryExists, FeatureStore, PutItem, StepKey, StoreReadError, StoreWriteError, VideoKey
from cache_store.remote import retries, s3_objects
from tests.cache_store.conftest import tensor
from tests.cache_store.remote.faulty_proxy import faulty_proxy
from tests.cache_store.remote.s3_server import s3_bucket, server_url

KEY, OTHER = StepKey("episode", 0), StepKey("episode", 30)
ALWAYS = 1000
FAULTS = ["503", "cut", "silence", "refused"]


@pytest.fixture(scope="module")
def the_proxy():
    pytest.importorskip("moto.server")
    with faulty_proxy(server_url()) as made:
        yield made


@pytest.fixture
def proxy(the_proxy):
    the_proxy.recover()
    the_proxy.counts.clear()
    return the_proxy


@pytest.fixture
def store(proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(retries, "PATIENCE", retries.Patience(tries=3, first_delay_s=0.01))
    monkeypatch.setattr(s3_objects, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    with FeatureStore(s3_bucket(monkeypatch, proxy.url)) as opened:
        yield opened


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_waited_for(store, proxy, fault):
    proxy.fail(fault, 1, "PUT")
    store.put(KEY, tensor(1))
    proxy.fail(fault, 1, "GET")
    assert torch.equal(store.get(KEY), tensor(1))
    assert proxy.counts[fault] == 2
    if fault in ("503", "silence"):  # aiohttp itself asks again where a connection was closed
        assert store.transfers.failed_tries >= 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_goes_on_failing_is_named_and_never_a_miss(store, proxy, fault):
    store.put(OTHER, tensor(2))
    store.get(OTHER)
    if fault != "cut":  # the answer to a put has nothing to cut
        proxy.fail(fault, ALWAYS, "PUT")
        with pytest.raises(StoreWriteError, match=r"episode_vlm0\.pt: unreachable: 3 tries"):
            store.put(KEY, tensor(1))
        proxy.recover()
        assert not store.contains(KEY)
    store.put(KEY, tensor(1))
    proxy.fail(fault, ALWAYS, "GET")
    with pytest.raises(StoreReadError, match=r"episode_vlm0\.pt: unreachable: 3 tries"):
        store.get(KEY)
    assert torch.equal(store.get(OTHER), tensor(2))  # of which there is a copy
    proxy.recover()
    assert store.stats().misses == 0
    assert torch.equal(store.get(KEY), tensor(1))


def test_a_put_whose_answer_is_lost_is_not_taken_for_somebody_elses(store, proxy):
    proxy.fail("lost answer", 1, "PUT")
    store.put(KEY, tensor(1), create_only=True)
    assert proxy.counts["lost answer"] == 1
    with pytest.raises(EntryExists):
        store.put(KEY, tensor(1), create_only=True)


def test_a_listing_goes_on_after_a_fault(store, proxy):
    store.put(KEY, tensor(1))
    proxy.fail("503", 1, "GET")
    proxy.fail("cut", 1, "GET")
    assert list(store.keys()) == [KEY]
    assert proxy.counts["503"] == proxy.counts["cut"] == 1


def test_a_listing_goes_through_all_pages_and_shows_nothing_hidden(store, monkeypatch):
    store.put(VideoKey("Video-MME", "v", 4, "0a1b2c3d"), {"vision_features": tensor(1)}, recipe={"weights": "a"})
    store.put_many([PutItem(StepKey("episode", index), tensor(index)) for index in range(4)])
    whole = s3_objects.S3Objects._list
    monkeypatch.setattr(s3_objects.S3Objects, "_list", lambda self, **options: whole(self, MaxKeys=2, **options))
    names = [info.name for page in store._objects().pages() for info in page]
    assert len(names) == 5
    assert not any(name.startswith(".") for name in names)


def test_a_missing_bucket_is_named_when_the_store_is_opened(proxy, monkeypatch):
    from cache_store import StoreFormatError

    s3_bucket(monkeypatch)
    with pytest.raises(StoreFormatError, match="no bucket nowhere"):
        FeatureStore("s3://nowhere/at-all")
