"""A pin protects what it names until it ends; nothing that is doubtful is taken for unprotected."""

from __future__ import annotations

import json
import multiprocessing
import os

import pytest

from cache_store import InvalidKey, StepKey, StoreWriteError, VideoKey, naming, pins
from cache_store.clock import file_system_now_s
from cache_store.pins import Protected
from cache_store.processes import SILENT_AFTER_S, Owner, this_process
from tests.cache_store.conftest import tensor

MD5 = "0123456789abcdef" * 2


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".vlm-cache").mkdir()
    return tmp_path


def active(root, *, later_s=0.0):
    return pins.active(root, file_system_now_s(root) + later_s)


def dead_process():
    """A process of this host that has ended."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=lambda: results.put(this_process(None)))
    child.start()
    owner = results.get(timeout=60)
    child.join()
    return owner


def on_another_host():
    return Owner("elsewhere", 17, "123", "")


def test_a_pin_is_one_file_that_says_what_it_protects_and_for_how_long(root):
    pin = pins.add(root, datasets=["Video-MME"], names=["ep_vlm3.pt"], for_s=60, note="evaluation of May")
    (file,) = (root / ".vlm-cache" / "pins").iterdir()
    assert file.name == f"{pin.id}.json"
    assert json.loads(file.read_text())["datasets"] == ["Video-MME"]
    assert active(root) == [pin]
    info = pin.info()
    assert (info.datasets, info.entries, info.holder, info.note) == (["Video-MME"], 1, None, "evaluation of May")


def test_a_pin_ends_when_it_expires_and_is_swept_then(root):
    for_ever = pins.add(root, datasets=["a"])
    pins.add(root, datasets=["b"], for_s=60)
    assert len(active(root, later_s=59)) == 2
    assert active(root, later_s=61) == [for_ever]
    now_s = file_system_now_s(root)
    assert pins.sweep(root, now_s) == 0
    assert pins.sweep(root, now_s + 61) == 1
    assert active(root) == [for_ever]


def test_a_lease_ends_with_its_process(root):
    lease = pins.add(root, datasets=["a"], owner=this_process("run"))
    pins.add(root, datasets=["b"], owner=dead_process())
    assert active(root) == [lease]
    assert lease.info().holder.endswith(f" {os.getpid()}")
    assert pins.sweep(root, file_system_now_s(root)) == 1
    assert active(root) == [lease]


def test_a_lease_of_another_host_lives_as_long_as_it_is_renewed(root):
    lease = pins.add(root, datasets=["a"], owner=on_another_host())
    path = root / naming.pin_path(lease.id)
    os.utime(path, (0, 0))
    assert active(root) == []
    pins.renew(root, lease)
    assert active(root) == [lease]
    assert active(root, later_s=SILENT_AFTER_S - 10) == [lease]
    assert active(root, later_s=SILENT_AFTER_S + 10) == []


def test_a_lease_that_another_host_took_for_dead_is_written_again(root):
    lease = pins.add(root, names=["ep_vlm0.pt"], owner=on_another_host())
    os.utime(root / naming.pin_path(lease.id), (0, 0))
    assert pins.sweep(root, file_system_now_s(root)) == 1
    pins.renew(root, lease)
    assert active(root) == [lease]


def test_pins_are_taken_back_by_id_by_its_first_digits_and_by_data_set(root):
    first, second, both = (pins.add(root, datasets=names) for names in (["a"], ["a"], ["a", "b"]))
    assert pins.remove(root, "nothing") == 0
    assert pins.remove(root, first.id) == 1
    assert pins.remove(root, "a") == 2
    (left,) = active(root)
    assert (left.id, left.datasets) == (both.id, ("b",))
    assert pins.remove(root, both.id[:8]) == 1
    assert second not in active(root)


def test_the_first_digits_of_two_pins_are_refused_and_both_are_named(root, monkeypatch):
    class Id:
        def __init__(self, hex_digits):
            self.hex = hex_digits

    ids = iter([Id("abcd" + "0" * 28), Id("abcd" + "1" * 28)])
    with monkeypatch.context() as patch:
        patch.setattr(pins.uuid, "uuid4", lambda: next(ids))
        patch.setattr(pins, "publish", lambda buffers, path: (root / path).write_bytes(b"".join(buffers)))
        (root / ".vlm-cache" / "pins").mkdir()
        pins.add(root, datasets=["a"])
        pins.add(root, datasets=["b"])
    with pytest.raises(ValueError, match=r"abcd0000.*abcd1111"):
        pins.remove(root, "abcd")
    assert len(active(root)) == 2


def test_unpinning_a_data_set_leaves_the_processes_alone_that_read_it(root):
    lease = pins.add(root, datasets=["a"], owner=this_process(None))
    assert pins.remove(root, "a") == 0
    assert pins.remove(root, lease.id) == 1
    assert active(root) == []


@pytest.mark.parametrize(
    ("pinned", "covered", "free"),
    [
        ("ep", ["ep_vlm0.pt", "ep_vlm17.pt", "0123abcd/ep_vlm0.pt"], ["ep2_vlm0.pt", f"other/{MD5}.pt"]),
        ("Bench", [f"Bench/{MD5}.pt", f"Bench@0123abcd/{MD5}.pt"], [f"Bench2/{MD5}.pt", f"bench/{MD5}.pt"]),
        ("Bench@0123abcd", [f"Bench@0123abcd/{MD5}.pt"], [f"Bench/{MD5}.pt", f"Bench@abababab/{MD5}.pt"]),
        ("recv_all_*", ["recv_all_20251027_170308_vlm3.pt"], ["episode_20251027_vlm3.pt"]),
        ("B*@0123abcd", [f"Bench@0123abcd/{MD5}.pt"], [f"Bench/{MD5}.pt", f"Other@0123abcd/{MD5}.pt"]),
        ("a[1]", ["a[1]_vlm0.pt", "a1_vlm0.pt"], ["a2_vlm0.pt"]),
        ("x_vlm3", [f"x_vlm3/{MD5}.pt", "x_vlm3_vlm7.pt"], ["x_vlm3.pt", f"x/{MD5}.pt"]),
        ("Video-MME", [f"Video-MME/{MD5}.pt", f"Video-MME_128frame/{MD5}.pt"], [f"MLVU/{MD5}.pt"]),
        ("*", ["ep_vlm0.pt", f"Bench@0123abcd/{MD5}.pt"], ["no feature.txt"]),
    ],
)
def test_a_pin_covers_the_features_of_its_data_set(root, pinned, covered, free):
    protected = Protected([pins.add(root, datasets=[pinned])])
    for name in [*covered, *covered]:
        assert protected.covers(name), name
    for name in [*free, *free]:
        assert not protected.covers(name), name


def test_a_pin_of_one_feature_covers_that_one(root):
    protected = Protected([pins.add(root, names=["ep_vlm1.pt"])])
    assert protected.covers("ep_vlm1.pt")
    assert not protected.covers("ep_vlm11.pt")
    assert not Protected([]).covers("ep_vlm1.pt")


@pytest.mark.parametrize("dataset", ["", "../x", "a/b", ".hidden", "a@", "a@xyz", "a@0123ABCD", "a\nb", 7])
def test_what_can_name_no_data_set_is_refused(root, dataset):
    with pytest.raises(InvalidKey):
        pins.add(root, datasets=[dataset])
    assert active(root) == []


def test_empty_pins_wrong_durations_and_foreign_names_are_refused(root):
    with pytest.raises(ValueError, match="needs a data set"):
        pins.add(root)
    for for_s in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            pins.add(root, datasets=["a"], for_s=for_s)
    for name in ("../../etc/passwd", "ep.pt", "/ep_vlm0.pt"):
        with pytest.raises(InvalidKey, match="relative path"):
            pins.add(root, names=[name])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"datasets": "a", "names": [], "note": "", "expires": null, "owner": null}',
        b'{"datasets": ["a/b"], "names": [], "note": "", "expires": null, "owner": null}',
        b'{"datasets": ["a"], "names": [], "note": "", "expires": "soon", "owner": null}',
        b'{"datasets": ["a"], "names": [], "note": "", "expires": null, "owner": {"pid": Infinity}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_pin_protects_everything_until_it_is_removed(root, caplog, content):
    pin = pins.add(root, datasets=["a"], for_s=1)
    (root / naming.pin_path(pin.id)).write_bytes(content)
    (found,) = active(root, later_s=10**9)
    active(root)
    assert Protected([found]).covers("anything_vlm0.pt")
    assert "damaged" in found.note
    assert len(caplog.records) == 1
    assert pin.id in caplog.text
    assert pins.sweep(root, file_system_now_s(root) + 10**9) == 0
    assert pins.remove(root, pin.id) == 1
    assert active(root) == []


def test_files_that_are_no_pins_are_ignored(root):
    folder = root / ".vlm-cache" / "pins"
    folder.mkdir()
    for name in (".vlm-tmp-1", "README.json", f"{MD5}.json.bak", MD5):
        (folder / name).write_text("x")
    assert active(root) == []


def test_a_store_that_cannot_be_written_to_is_named(root):
    (root / ".vlm-cache" / "pins").write_text("a file where the folder should be")
    with pytest.raises(StoreWriteError, match="pins"):
        pins.add(root, datasets=["a"])
    assert active(root) == []


def _pin_many(root, barrier, number):
    barrier.wait()
    for index in range(10):
        pins.add(root, datasets=[f"d{number}_{index}"])


def test_processes_that_pin_at_once_all_succeed(root):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    children = [context.Process(target=_pin_many, args=(root, barrier, number)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert {pin.datasets[0] for pin in active(root)} == {f"d{n}_{i}" for n in range(4) for i in range(10)}


FIRST, SECOND = {"weights": "original"}, {"weights": "fine-tuned"}


def test_pinned_bytes_leave_out_what_is_asked_about_in_its_own_recipe_alone(store):
    video = VideoKey("Video-MME", "a", 8, "0123abcd")
    alias = VideoKey("Video-MME_128frame", "b", 8, "0123abcd")
    keys = [video, VideoKey("Video-MME", "b", 8, "0123abcd"), StepKey("episode_1", 0)]
    paths = {
        "first": store.put(video, tensor(1), recipe=FIRST),
        "second": store.put(video, tensor(2, width=128), recipe=SECOND),
        "alias": store.put(alias, tensor(3, width=256), recipe=SECOND),
        "step": store.put(StepKey("episode_1", 0), tensor(4, width=512), recipe=FIRST),
        "unpinned": store.put(StepKey("episode_2", 0), tensor(5)),
    }
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    assert store.pinned_bytes(besides=iter(keys)) == 0
    store.pin(["Video-MME", "episode_1"])
    whole = sum(sizes.values()) - sizes["unpinned"]
    assert store.pinned_bytes() == whole
    assert store.pinned_bytes(besides=[(video, SECOND)]) == whole - sizes["second"]
    assert store.pinned_bytes(besides=[(video, FIRST)]) == whole - sizes["first"]
    assert store.pinned_bytes(besides=[(video, {"weights": "third"})]) == whole
    assert store.pinned_bytes(besides=[(key, SECOND) for key in keys]) == sizes["first"]
    assert store.pinned_bytes(besides=[(video, None)]) == whole - sizes["first"]
