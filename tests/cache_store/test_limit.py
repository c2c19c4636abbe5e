"""The limit holds, least recently used goes first, and nothing that is needed goes at all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch

from cache_store import PutItem, StepKey, StoreFull, atomic, books, budget, evictor, removing
from cache_store.accounts import EVICTING
from cache_store.archive import Record
from cache_store.codec import encode
from cache_store.journal import Journal, Line, deletion, line, now_us
from cache_store.ledger import Ledger
from cache_store.put_item import key_fields
from tests.cache_store.conftest import published_bytes, summed, tensor


def key(index):
    return StepKey("episode", index)


SIZE = sum(map(len, encode(tensor(0), record=Record(key_fields(key(0)), None, None, None))))


def kept(store):
    return [found.vlm_idx for found in sorted(store.keys())]


def test_the_limit_is_exact_and_an_entry_that_just_fits_fits(open_store):
    store = open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    assert published_bytes(store.root) == 3 * SIZE == store.stats().bytes
    store.put(key(3), tensor(3))
    assert kept(store) == [1, 2, 3]
    assert store.stats().evictions == 1


def test_eviction_follows_real_use_of_reads_and_writes(open_store):
    store = open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    store.get(key(0))
    store.put(key(1), tensor(1))
    store.put(key(3), tensor(3))
    assert kept(store) == [0, 1, 3]


def test_reads_of_another_process_count_as_use(open_store):
    writer = open_store(limit_bytes=2 * SIZE)
    writer.put(key(0), tensor(0))
    writer.put(key(1), tensor(1))
    with open_store() as reader:
        reader.get(key(0))
    writer.put(key(2), tensor(2))
    assert kept(writer) == [0, 2]


def test_replacing_an_entry_needs_only_the_difference(open_store):
    store = open_store(limit_bytes=2 * SIZE)
    store.put(key(0), tensor(0))
    store.put(key(1), tensor(1))
    store.put(key(0), tensor(5))
    assert kept(store) == [0, 1]


def test_an_entry_larger_than_the_limit_is_refused_and_evicts_nothing(open_store):
    store = open_store(limit_bytes=3 * SIZE)
    store.put(key(0), tensor(0))
    with pytest.raises(StoreFull, match="larger than the limit") as caught:
        store.put(key(1), tensor(1, width=100_000))
    assert caught.value.limit_bytes == 3 * SIZE
    assert caught.value.needed_bytes > 200_000
    assert kept(store) == [0]


def test_a_run_never_evicts_its_own_entries_or_those_it_protects(open_store):
    old = open_store(limit_bytes=4 * SIZE + 10)
    for index in range(3):
        old.put(key(index), tensor(index))
    run = open_store(run_id="build-1")
    run.protect([key(0)])
    for index in (10, 11, 12):
        run.put(key(index), tensor(index))
    assert kept(run) == [0, 10, 11, 12]
    with pytest.raises(StoreFull, match="active runs") as caught:
        run.put(key(13), tensor(13))
    assert caught.value.needed_bytes == SIZE + 1  # the record's index has one more digit
    assert kept(run) == [0, 10, 11, 12]
    with pytest.raises(StoreFull):
        old.put(key(4), tensor(4))
    run.close()
    old.put(key(4), tensor(4))
    assert 4 in kept(old)


def _hold_a_run_and_die(open_store, put):
    store = open_store(run_id="crashed")
    store.put(key(0), tensor(0))
    put.set()
    os._exit(9)


def test_a_killed_run_protects_nothing_any_more(open_store):
    store = open_store(limit_bytes=SIZE)
    context = multiprocessing.get_context("fork")
    put = context.Event()
    dying = context.Process(target=_hold_a_run_and_die, args=(open_store, put))
    dying.start()
    dying.join()
    assert put.is_set()
    assert kept(store) == [0]
    store.put(key(1), tensor(1))
    assert kept(store) == [1]


def _reserve_and_die(root):
    journal = Journal(root / ".vlm-cache" / "journals.2", None)
    journal.append(line("r", 10**9, "episode_vlm7.pt"))
    os._exit(9)


def test_what_a_killed_writer_had_reserved_comes_back(open_store):
    store = open_store(limit_bytes=2 * SIZE)
    store.put(key(0), tensor(0))
    context = multiprocessing.get_context("fork")
    dying = context.Process(target=_reserve_and_die, args=(store.root,))
    dying.start()
    dying.join()
    store.put(key(1), tensor(1))
    assert kept(store) == [0, 1]


def test_what_a_writer_published_just_before_it_was_killed_counts(open_store, monkeypatch):
    store = open_store(limit_bytes=2 * SIZE)
    store.put(key(0), tensor(0))
    real = Journal.append

    def die_after_the_rename(journal, *lines):
        if any(new.kind == "p" for new in lines):
            os._exit(9)
        real(journal, *lines)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", die_after_the_rename)
        context = multiprocessing.get_context("fork")
        dying = context.Process(target=store.put, args=(key(7), tensor(7)))
        dying.start()
        dying.join()
    assert dying.exitcode == 9
    assert kept(store) == [0, 7]
    store.put(key(1), tensor(1))
    assert kept(store) == [1, 7]
    assert published_bytes(store.root) == 2 * SIZE


def test_an_entry_that_is_being_written_is_not_evicted(open_store):
    store = open_store(limit_bytes=2 * SIZE + 1)
    store.put(key(0), tensor(0))
    store.put(key(1), tensor(1))
    other = Journal(store.root / ".vlm-cache" / "journals.2", None)
    other.append(line("r", 1), line("w", 0, "episode_vlm0.pt"))
    store.put(key(2), tensor(2))
    assert 0 in kept(store)
    assert 1 not in kept(store)
    other.close()


def wait_until_announced(store, name, wanted, writer):
    """Wait until as many journals as wanted announce a file, or the writer is done with it."""
    while writer.is_alive():
        view = Ledger(store.root)
        view.read()
        if sum(name in tail.writing for tail in view.changes.tails.values()) == wanted:
            return


def test_a_writer_waits_for_an_evictor_that_is_at_the_file_that_it_replaces(open_store, monkeypatch):
    store, other = open_store(limit_bytes=3 * SIZE), open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    smaller = threading.Thread(target=other.put, args=(key(0), tensor(7, width=8)))

    def replace_first(*arguments):
        monkeypatch.setattr(evictor, "remove_loose", removing.remove_loose)
        smaller.start()
        wait_until_announced(store, "episode_vlm0.pt", 2, smaller)
        smaller.join(0.2)  # who does not wait is done by then
        return removing.remove_loose(*arguments)

    monkeypatch.setattr(evictor, "remove_loose", replace_first)
    store.put(key(3), tensor(3))
    smaller.join()
    assert torch.equal(store.get(key(0)), tensor(7, width=8))
    assert summed(store) - store._books.budget._granted - other._books.budget._granted == published_bytes(store.root)


def test_a_writer_whose_old_file_was_evicted_meanwhile_asks_for_the_room_of_a_new_one(open_store, monkeypatch):
    store, other = open_store(limit_bytes=3 * SIZE), open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    claim = other._books.budget.claim

    def claim_and_be_late(files):
        claim(files)
        monkeypatch.setattr(other._books.budget, "claim", claim)
        removing.remove(store.root, "episode_vlm0.pt")  # as an evictor that had read the journals just before
        store._books.journal.append(deletion({"episode_vlm0.pt": SIZE}))
        store.put(key(3), tensor(3))

    monkeypatch.setattr(other._books.budget, "claim", claim_and_be_late)
    other.put(key(0), tensor(7))
    assert published_bytes(store.root) == 3 * SIZE
    assert kept(store) == [0, 2, 3]


def test_an_evictor_lets_a_file_be_that_a_writer_has_just_announced(open_store, monkeypatch):
    store, other = open_store(limit_bytes=3 * SIZE), open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    may_publish, publish = threading.Event(), books.publish

    def publish_late(*arguments, **options):
        if threading.current_thread() is smaller:
            may_publish.wait()
        publish(*arguments, **options)

    def chosen(self, *arguments, **options):
        rows = choose(self, *arguments, **options)
        if not smaller.is_alive():
            smaller.start()
            wait_until_announced(store, "episode_vlm0.pt", 1, smaller)
        return rows

    smaller = threading.Thread(target=other.put, args=(key(0), tensor(7, width=8)))
    choose = evictor.Evictor._chosen
    monkeypatch.setattr(books, "publish", publish_late)
    monkeypatch.setattr(evictor.Evictor, "_chosen", chosen)
    store.put(key(3), tensor(3))
    may_publish.set()
    smaller.join()
    assert torch.equal(store.get(key(0)), tensor(7, width=8))
    assert kept(store) == [0, 2, 3]
    assert summed(store) - store._books.budget._granted - other._books.budget._granted == published_bytes(store.root)


def test_a_file_that_is_put_anew_before_its_eviction_is_told_stays_in_the_books(open_store, monkeypatch):
    store = open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    writer, remove = Journal(store.root / ".vlm-cache" / "journals.2", None), removing.remove_loose

    def remove_and_be_late(root, name):
        path = store.root / name
        content = path.read_bytes()
        size = len(content)
        removed = remove(root, name)
        monkeypatch.setattr(evictor, "remove_loose", remove)
        writer.append(line("r", size), line("w", 0, name))
        path.write_bytes(content)
        writer.append(line("p", 0, size, now_us(), "", "", size, name))
        return removed

    monkeypatch.setattr(evictor, "remove_loose", remove_and_be_late)
    store.put(key(3), tensor(3))
    writer.close()
    ledger = Ledger(store.root)
    ledger.read()
    assert ledger.changes.entries["episode_vlm0.pt"].bytes == SIZE
    assert published_bytes(store.root) <= 3 * SIZE


def test_what_comes_in_while_an_evictor_reads_is_no_error_of_the_sums(open_store, monkeypatch):
    store = open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    other, read_tails = Journal(store.root / ".vlm-cache" / "journals.2", None), Ledger._read_tails

    def read_late(self, changes):
        # The sums have been read; the lines are yet to be.
        other.append(line("r", 10), line("r", -10), line("r", 1))
        read_tails(self, changes)

    other.append()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_read_tails", read_late)
        store.put(key(3), tensor(3))
    journals = [path.read_text() for path in (store.root / ".vlm-cache" / "journals.2").iterdir()]
    assert "\nd\t" in "".join(journals)
    assert "\nk\t" not in "".join(journals)
    other.close(0)


def test_a_file_that_somebody_deletes_before_the_evictor_leaves_the_sums_once(open_store, monkeypatch):
    store, other = open_store(limit_bytes=3 * SIZE), open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    late: list[Line] = []

    def delete_first(*arguments):
        monkeypatch.setattr(evictor, "remove_loose", removing.remove_loose)
        with monkeypatch.context() as patch:
            patch.setattr(other._books, "note", lambda one: late.append(one) if one.kind == "d" else note(one))
            assert other.delete(key(0))
        return removing.remove_loose(*arguments)

    note = other._books.note
    monkeypatch.setattr(evictor, "remove_loose", delete_first)
    store.put(key(3), tensor(3))
    ledger = store._books._ledger
    ledger.fold(store._books.journal, ledger.table(), ledger.silences_s(0.0))  # as the next pass may
    note(*late)
    granted_bytes = store._books.budget._granted + other._books.budget._granted
    assert summed(store) - granted_bytes == published_bytes(store.root)


def test_nobody_waits_for_an_evictor_that_was_killed(open_store, monkeypatch):
    def announce_and_die(store):
        store._books.journal.append(line("w", 0, EVICTING, "episode_vlm0.pt"))
        os._exit(0)

    store = open_store(limit_bytes=3 * SIZE)
    store.put(key(0), tensor(0))
    child = multiprocessing.get_context("fork").Process(target=announce_and_die, args=(store,))
    child.start()
    child.join()
    monkeypatch.setattr(books.time, "sleep", lambda _: pytest.fail("it waits"))
    store.put(key(0), tensor(1))


def test_a_writer_waits_for_the_room_that_another_one_holds(open_store, monkeypatch):
    store = open_store(limit_bytes=2 * SIZE)
    store.put(key(0), tensor(0))
    other = Journal(store.root / ".vlm-cache" / "journals.2", None)
    other.append(line("r", 2 * SIZE), line("w", 0, "episode_vlm9.pt"))
    waits = []

    def wait(_seconds):
        waits.append(published_bytes(store.root))
        other.append(line("x", 0, "episode_vlm9.pt"), line("r", -2 * SIZE))

    monkeypatch.setattr(budget.time, "sleep", wait)
    store.put(key(1), tensor(1))
    assert len(waits) == 1
    other.close()


def test_a_file_rewritten_by_an_old_script_is_not_evicted_as_the_old_one(open_store):
    store = open_store(limit_bytes=3 * SIZE)
    for index in range(3):
        store.put(key(index), tensor(index))
    path = store.path_of(key(0))
    torch.save(tensor(9), path)
    os.utime(path, (2**31, 2**31))
    store.put(key(3), tensor(3))
    assert 0 in kept(store)
    assert torch.equal(store.get(key(0)), tensor(9))


def test_files_of_the_old_scripts_count_and_are_evicted_first(open_store, tmp_path):
    (tmp_path / "store").mkdir()
    for index in range(3):
        path = tmp_path / "store" / f"old_vlm{index}.pt"
        torch.save(tensor(index), path)
        os.utime(path, (index, index))
    old_size = path.stat().st_size
    store = open_store(limit_bytes=3 * old_size)
    foreign = store.root / "model.pt"
    foreign.write_bytes(b"x" * 10)
    store.put(key(0), tensor(0))
    assert [found.vlm_idx for found in store.keys("old")][-1] == 2
    assert not (store.root / "old_vlm0.pt").exists()
    assert foreign.exists()
    foreign.unlink()


def test_a_lower_limit_takes_effect_with_the_next_put_and_zero_means_none(open_store):
    store = open_store(limit_bytes=10 * SIZE)
    for index in range(5):
        store.put(key(index), tensor(index))
    store.set_limit(2 * SIZE)
    assert len(kept(store)) == 5
    store.put(key(5), tensor(5))
    assert kept(store) == [4, 5]
    assert open_store().limit_bytes == 2 * SIZE
    store.set_limit(0)
    assert open_store().limit_bytes is None


def test_room_granted_under_a_high_limit_does_not_outlive_it(open_store):
    store = open_store(limit_bytes=1 << 34)
    store.put(key(0), tensor(0))
    store.set_limit(4 * SIZE)
    for index in range(1, 30):
        store.put(key(index), tensor(index))
        assert published_bytes(store.root) <= 4 * SIZE


def test_a_pass_evicts_a_little_more_than_needed_but_never_below_the_low_water_mark(open_store):
    size = SIZE + 2  # three digits of index in the record
    store = open_store(limit_bytes=100 * size)
    for index in range(100, 201):
        store.put(key(index), tensor(0))
    assert published_bytes(store.root) == 96 * size
    assert store.stats().evictions == 5


def test_a_pass_in_a_large_store_evicts_for_a_few_grants_only(open_store):
    store = open_store()
    store.put_many([PutItem(key(index), tensor(index)) for index in range(2000)])
    store.set_limit(published_bytes(store.root))
    store.put(key(5000), tensor(0))
    assert 4 < store.stats().evictions <= 16


@pytest.fixture
def largest_total(monkeypatch):
    """The largest total in bytes seen after any rename of all threads and forked children.

    Renames are serialised, so that a file can only disappear while the others are counted.
    """
    context = multiprocessing.get_context("fork")
    lock, largest = context.Lock(), context.Value("q", 0)
    real = os.replace

    def replace(source, target):
        with lock:
            real(source, target)
            total = 0
            for path in Path(target).parent.glob("*.pt"):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
            largest.value = max(largest.value, total)

    monkeypatch.setattr(atomic.os, "replace", replace)
    return largest


def test_threads_of_one_store_stay_under_the_limit(open_store, largest_total):
    store = open_store(limit_bytes=5 * SIZE)

    def work(thread):
        for index in range(10):
            store.put(StepKey("episode", thread * 10 + index), tensor(index))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 4 * SIZE < largest_total.value <= 5 * SIZE
    assert store.stats().evictions >= 35


def _fill(open_store, worker, results):
    store = open_store()
    for index in range(25):
        store.put(StepKey(f"worker{worker}", index), tensor(index))
    store.close()
    results.put("done")


def test_several_processes_together_stay_under_the_limit(open_store, largest_total):
    open_store(limit_bytes=8 * SIZE)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_fill, args=(open_store, n, results)) for n in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in range(4)] == ["done"] * 4
    for worker in workers:
        worker.join()
    assert 6 * SIZE < largest_total.value <= 8 * SIZE
