"""The journals add up, compaction loses nothing, and everything in .vlm-cache is a hint."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch

from cache_store import (
    FeatureStore,
    StepKey,
    StoreWriteError,
    atomic,
    books,
    entry_table,
    journal,
    ledger,
    maintenance,
    scan,
)
from cache_store.journal import Journal, deletion, line
from cache_store.ledger import Ledger
from cache_store.processes import is_alive, this_process
from tests.cache_store.conftest import published_bytes, remove_snapshots, snapshot_of, summed, tensor


def key(index, dataset="episode"):
    return StepKey(dataset, index)


def journals_of(store):
    return sorted((store.root / ".vlm-cache" / "journals.2").iterdir())


def rows(*lines):
    """Lines as a journal writes them."""
    total, written = 0, []
    for kind, change, fields, time_us in lines:
        total += change
        written.append(f"{kind}\t{change}\t{total}\t{time_us}\t{fields}\n".encode())
    return b"".join(written)


def write_journal(store, name, *lines):
    folder = store.root / ".vlm-cache" / "journals.2"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "ab") as file:
        file.write(lines[0] if isinstance(lines[0], bytes) else rows(*lines))


def fold(view, own):
    view.read()
    silences_s = view.silences_s(0.0)
    view.settle(silences_s)
    table = view.table() or entry_table.merged(entry_table.from_entries({}), view.changes)
    view.fold(own, table, silences_s)


def refuse_listing(monkeypatch):
    def refuse(*_):
        raise AssertionError("the files were listed")

    monkeypatch.setattr(scan, "names_on_disk", refuse)


def _work(root, worker):
    with FeatureStore(root) as store:
        for index in range(10):
            store.put(key(index, f"worker{worker}"), tensor(index))
            store.put(key(index, f"worker{worker}"), tensor(index, width=32))
        store.delete(key(0, f"worker{worker}"))
        store.get(key(1, f"worker{worker}"))
        store.get(key(0, f"worker{worker}"))


def test_journals_of_several_processes_are_summed(store):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(store.root, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(journals_of(store)) == 3
    assert summed(store) == published_bytes(store.root)
    stats = store.stats()
    assert (stats.entries, stats.hits, stats.misses) == (27, 3, 3)
    assert stats.datasets["worker1"].entries == 9


def test_puts_under_a_limit_never_list_the_files_once_they_are_known(open_store, monkeypatch):
    store = open_store(limit_bytes=20_000)
    store.put(key(0), tensor(0))
    refuse_listing(monkeypatch)
    with open_store() as second:
        for index in range(1, 40):
            second.put(key(index), tensor(index))
    monkeypatch.undo()
    assert published_bytes(store.root) <= 20_000


def test_compaction_keeps_entries_order_of_use_and_counters(open_store, monkeypatch):
    monkeypatch.setattr(ledger, "_FOLD_TAIL_BYTES", 500)
    monkeypatch.setattr(ledger, "_FOLD_TAIL_BYTES_PER_ENTRY", 0)
    monkeypatch.setattr(books, "_FOLD_CHECK_EVERY_PUTS", 1)
    store = open_store()
    for index in range(30):
        store.put(key(index), tensor(index))
    store.get(key(3))
    store.get(key(99))
    store.close()
    refuse_listing(monkeypatch)
    view = Ledger(store.root)
    view.read()
    assert view.snapshot.entries > 20
    assert view.total_bytes == view.changes.published_bytes == published_bytes(store.root)
    entries = list(maintenance.entry_infos(view.table()))
    assert len(entries) == 30
    assert max(entries, key=lambda entry: entry.last_use).name == "episode_vlm3.pt"
    monkeypatch.undo()
    assert (store.stats().hits, store.stats().misses) == (1, 1)


def test_finished_journals_are_folded_away_and_living_ones_stay(open_store, monkeypatch):
    monkeypatch.setattr(ledger, "_FOLD_NEW_JOURNALS", 3)
    living = open_store()
    living.put(key(0, "living"), tensor(0))
    for index in range(6):
        with open_store() as store:
            store.put(key(index), tensor(index))
    # After the third close the two closed before it go; then three new ones do not pass the limit again.
    assert len(journals_of(store)) == 5
    living.put(key(1, "living"), tensor(1))
    assert summed(store) == published_bytes(store.root)
    assert store.stats().entries == 8


def test_a_journal_that_a_compactor_removed_is_replaced(store):
    store.put(key(0), tensor(0))
    store.stats()
    (first,) = journals_of(store)
    first.unlink()
    store.put(key(1), tensor(1))
    (second,) = journals_of(store)
    assert second != first
    assert b"episode_vlm1.pt" in second.read_bytes()
    assert summed(store) == published_bytes(store.root)


def test_lines_written_just_before_the_removal_are_written_again(store, monkeypatch):
    late = Journal(store.root / ".vlm-cache" / "journals.2", None)
    late.append(line("r", 5), line("p", 0, 5, 1, "", "", 5, "a_vlm0.pt"))
    name = late.name
    late.close()
    real = ledger.snapshot.write

    def write_then_the_closed_process_appends(*arguments):
        assert real(*arguments)
        write_journal(store, name, line("p", -3, 7, 1, "", "", 10, "b_vlm0.pt"))
        return True

    monkeypatch.setattr(ledger.snapshot, "write", write_then_the_closed_process_appends)
    own = Journal(store.root / ".vlm-cache" / "journals.2", None)
    view = Ledger(store.root)
    fold(view, own)
    assert name not in [path.name for path in journals_of(store)]
    assert summed(store) == 12
    own.close()


def test_deleting_the_store_folder_loses_only_statistics_and_settings(store):
    for index in range(5):
        store.put(key(index), tensor(index))
    shutil.rmtree(store.root / ".vlm-cache")
    assert torch.equal(store.get(key(2)), tensor(2))
    store.put(key(5), tensor(5))
    stats = store.stats()
    assert (stats.entries, stats.bytes) == (6, published_bytes(store.root))


def test_a_limit_holds_after_the_store_folder_was_deleted_while_a_writer_runs(open_store):
    store = open_store(limit_bytes=10_000)
    for index in range(5):
        store.put(key(index), tensor(index))
    shutil.rmtree(store.root / ".vlm-cache")
    for index in range(5, 10):
        store.put(key(index), tensor(index))
    assert published_bytes(store.root) <= 10_000


@pytest.mark.parametrize("content", [b"", b"{}\n", b"garbage\n", b'{"format":1}\n', b"\xff\xfe"])
def test_a_damaged_snapshot_is_replaced_by_a_scan(open_store, content):
    store = open_store(limit_bytes=10**6)
    for index in range(3):
        store.put(key(index), tensor(index))
    store.close()
    store.stats()
    snapshot_of(store.root).write_bytes(content)
    for journal_path in journals_of(store):
        journal_path.unlink()
    again = open_store()
    again.put(key(3), tensor(3))
    assert again.stats().entries == 4


def test_torn_and_foreign_lines_are_skipped(store):
    store.put(key(0), tensor(0))
    (path,) = journals_of(store)
    with open(path, "ab") as file:
        file.write(b"p\tx\ty\nd\t-5\np\t0\t0\t0\tnan\t0\t\t\t0\tname\n\xff\t1\n\n" + rows(line("k", 0, 0)) + b"p\t99")
    assert store.stats().entries == 1


def test_files_added_removed_or_known_wrongly_are_corrected_by_stats(store):
    for index in range(3):
        store.put(key(index), tensor(index))
    store.path_of(key(0)).unlink()
    torch.save(tensor(1), store.root / "added_vlm0.pt")
    stats = store.stats()
    assert (stats.entries, stats.bytes) == (3, published_bytes(store.root))
    assert summed(store) == published_bytes(store.root)


def test_a_failed_append_starts_a_new_journal_instead_of_continuing_a_torn_line(store, monkeypatch):
    store.put(key(0), tensor(0))
    real = os.write

    def half(fd, data):
        monkeypatch.undo()
        real(fd, bytes(data)[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    writing = Journal(store.root / ".vlm-cache" / "journals.2", None)
    writing.append()
    monkeypatch.setattr(journal.os, "write", half)
    with pytest.raises(StoreWriteError):
        writing.append(line("d", 0, 0, "x"))
    first = len(journals_of(store))
    writing.append(line("d", 0, 0, "x"))
    assert len(journals_of(store)) == first + 1
    writing.close()


def _put_in_child(store):
    store.put(key(1), tensor(1))
    store.close()


def test_a_forked_child_writes_its_own_journal(store):
    store.put(key(0), tensor(0))
    child = multiprocessing.get_context("fork").Process(target=_put_in_child, args=(store,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert len(journals_of(store)) == 2
    store.put(key(2), tensor(2))
    assert summed(store) == published_bytes(store.root)


def test_without_any_locking_two_stores_still_keep_the_limit(open_store, monkeypatch):
    monkeypatch.setattr("filelock._unix.fcntl.flock", lambda *_: None)
    first, second = open_store(limit_bytes=8_000), open_store()
    for index in range(10):
        first.put(key(index, "a"), tensor(index))
        second.put(key(index, "b"), tensor(index))
        assert published_bytes(first.root) <= 8_000


def test_events_of_several_journals_count_in_the_order_of_their_time(store):
    write_journal(store, "z.journal", line("p", 5, 5, 1, "", "", 0, "a_vlm0.pt", time_us=1))
    write_journal(store, "a.journal", line("d", -5, 5, "a_vlm0.pt", time_us=2))
    view = Ledger(store.root)
    view.read()
    assert view.changes.entries == {"a_vlm0.pt": None}
    assert view.total_bytes == view.changes.published_bytes == 0


def test_a_line_that_is_still_being_written_counts_once_it_is_whole(store):
    whole = rows(line("p", 5, 5, 1, "", "", 0, "a_vlm0.pt"))
    view = Ledger(store.root)
    write_journal(store, "a.journal", whole[:9])
    view.refresh()
    assert view.total_bytes == 0
    write_journal(store, "a.journal", whole[9:] + whole[:4])
    view.refresh()
    assert view.total_bytes == 5
    write_journal(store, "a.journal", rows(line("k", 5, 0), line("d", -3, 3, "b_vlm0.pt"))[4:])
    view.refresh()
    assert view.total_bytes == 2


def test_a_compaction_in_the_middle_of_a_reading_loses_nothing(store, monkeypatch):
    own = Journal(store.root / ".vlm-cache" / "journals.2", None)
    write_journal(store, "a.journal", line("p", 5, 5, 1, "", "", 0, "a_vlm0.pt"), line("c", 0))
    real, folded = ledger._journal_names, []

    def names_after_a_compaction(folder):
        if not folded:
            folded.append(True)
            compactor = Ledger(store.root)
            fold(compactor, own)
        return real(folder)

    monkeypatch.setattr(ledger, "_journal_names", names_after_a_compaction)
    assert summed(store) == 5
    assert "a.journal" not in [path.name for path in journals_of(store)]


@pytest.mark.parametrize("is_folded", [True, False], ids=["in the snapshot", "in a journal"])
@pytest.mark.parametrize("is_told", [True, False], ids=["and told", "and told later"])
def test_what_is_deleted_while_files_are_listed_is_taken_off_once(open_store, monkeypatch, is_told, is_folded):
    store, other = open_store(limit_bytes=10**6), open_store()
    evictor = Journal(store.root / ".vlm-cache" / "journals.2", None)
    store.put(key(0), tensor(0))
    store.stats()
    real, names = scan.entry_of, scan.names_on_disk

    def listed_before_a_put(root):
        listed = names(root)
        other.put(key(1), tensor(1))
        if is_folded:
            fold(Ledger(root), evictor)
        return listed

    def looked_at_after_a_deletion(root, name):
        monkeypatch.setattr(scan, "entry_of", real)
        evictor.append(line("w", 0, name))
        size = (root / name).stat().st_size
        (root / name).unlink()
        told.append(deletion({name: size}))
        if is_told:
            evictor.append(*told)
        return real(root, name)

    told = []

    monkeypatch.setattr(scan, "names_on_disk", listed_before_a_put)
    monkeypatch.setattr(scan, "entry_of", looked_at_after_a_deletion)
    store.stats()
    assert scan.entry_of is real
    if not is_told:
        evictor.append(*told)
    evictor.close()
    other.close()
    store.close()
    assert summed(store) == published_bytes(store.root)


def test_what_is_written_while_files_are_listed_is_counted_once(open_store, monkeypatch):
    store, other = open_store(limit_bytes=10**6), open_store()
    store.put(key(0), tensor(0))
    other.put(key(1), tensor(1))
    store.stats()
    real, names = scan.entry_of, scan.names_on_disk

    def listed_before_a_deletion(root):
        listed = names(root)
        other.delete(key(1))
        return listed

    def looked_at_after_a_put(root, name):
        monkeypatch.setattr(scan, "entry_of", real)
        other.put(key(1), tensor(2))
        return real(root, name)

    monkeypatch.setattr(scan, "names_on_disk", listed_before_a_deletion)
    monkeypatch.setattr(scan, "entry_of", looked_at_after_a_put)
    assert store.stats().entries == 2
    assert scan.entry_of is real
    other.close()
    store.close()
    assert summed(store) == published_bytes(store.root)


def test_a_journal_that_begins_during_a_compaction_is_counted_once(open_store):
    store = open_store(limit_bytes=10**6)
    store.put(key(0), tensor(0))
    own = Journal(store.root / ".vlm-cache" / "journals.2", None)
    view = Ledger(store.root)
    silences_s = view.silences_s(0.0)
    late = open_store(run_id="late")
    late.put(key(1), tensor(1))
    view.read()
    view.fold(own, view.table(), silences_s)
    assert view.table() is None, "to be read anew"
    view.read()
    late.close()
    store.close()
    assert summed(store) == published_bytes(store.root)
    assert entry_table.entry_of(view.table(), "episode_vlm1.pt").runs == "late"
    own.close()


@pytest.mark.parametrize(
    ("compactions", "case"), [(1, ""), (2, ""), (2, "the newest is not listed"), (1, "the first"), (2, "the first")]
)
def test_of_compactors_who_read_the_same_one_counts_and_nothing_is_lost(open_store, monkeypatch, compactions, case):
    store = open_store(limit_bytes=10**6)
    store.put(key(0), tensor(0))
    store.stats()
    own = Journal(store.root / ".vlm-cache" / "journals.2", None)
    real = ledger.snapshot.write

    def write_late(*arguments):
        monkeypatch.setattr(ledger.snapshot, "write", real)
        for index in range(compactions):
            writer = open_store()
            writer.put(key(1 + index), tensor(1 + index))
            writer.close()
            fold(Ledger(store.root), own)
        with monkeypatch.context() as here:
            if case == "the newest is not listed":  # what appears while a folder is listed may be left out
                numbers = ledger.snapshot._numbers
                here.setattr(ledger.snapshot, "_numbers", lambda root: sorted(numbers(root))[:-1])
            assert not real(*arguments)
        return False

    monkeypatch.setattr(ledger.snapshot, "write", write_late)
    late = Ledger(store.root)
    if case == "the first":
        remove_snapshots(store.root)
    fold(late, own)
    assert snapshot_of(store.root) != store.root / ".vlm-cache" / "snapshot.1"
    assert len(list((store.root / ".vlm-cache").glob("snapshot*"))) == 1
    late.read()
    assert late.total_bytes == summed(store)
    assert summed(store) - published_bytes(store.root) == late.changes.granted_bytes
    assert late.table().num_rows == 1 + compactions
    own.close()


def test_what_a_failed_write_had_claimed_is_used_again_and_given_back_at_the_end(open_store, monkeypatch):
    store = open_store(limit_bytes=10**6)
    store.put(key(0), tensor(0))

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", fail)
        with pytest.raises(StoreWriteError):
            store.put(key(1), tensor(1))
    assert summed(store) == 2 * published_bytes(store.root)
    store.put(key(1), tensor(1))
    assert summed(store) == published_bytes(store.root)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", fail)
        with pytest.raises(StoreWriteError):
            store.put(key(2), tensor(2))
    store.close()
    assert summed(store) == published_bytes(store.root)


def test_a_feature_that_is_set_aside_leaves_the_total(open_store):
    store = open_store(limit_bytes=10**6)
    store.put(key(1), tensor(1))
    path = store.put(key(0), tensor(0))
    path.write_bytes(b"x" * path.stat().st_size)
    assert store.get(key(0)) is None
    assert summed(store) == published_bytes(store.root)


def test_a_snapshot_that_lost_lines_does_not_make_a_full_store_look_empty(open_store):
    store = open_store(limit_bytes=8_000)
    for index in range(4):
        store.put(key(index), tensor(index))
    own = Journal(store.root / ".vlm-cache" / "journals.2", None)
    view = Ledger(store.root)
    fold(view, own)
    for path in journals_of(store):
        path.unlink()
    snapshot = snapshot_of(store.root)
    content = snapshot.read_bytes()
    snapshot.write_bytes(content[:-200] + b"\0" * 200)
    again = open_store()
    again.put(key(4), tensor(4))
    assert published_bytes(store.root) <= 8_000


def test_a_reused_pid_is_not_taken_for_the_dead_writer():
    me = this_process("run")
    assert is_alive(me, silent_s=1e9)
    assert not is_alive(replace(me, started="1"), silent_s=0.0)
    assert not is_alive(replace(me, pid=2**22 + 1), silent_s=0.0)
    elsewhere = replace(me, host="elsewhere")
    assert is_alive(elsewhere, silent_s=60.0)
    assert not is_alive(elsewhere, silent_s=7200.0)


def test_a_child_forked_while_a_thread_holds_the_store_can_put(open_store, monkeypatch):
    store = open_store(limit_bytes=10**6)
    store.put(key(0), tensor(0))
    listing, go_on = threading.Event(), threading.Event()
    real = scan.names_on_disk

    def wait_in_the_listing(root):
        listing.set()
        go_on.wait(60)
        return real(root)

    monkeypatch.setattr(scan, "names_on_disk", wait_in_the_listing)
    thread = threading.Thread(target=store.stats)
    thread.start()
    listing.wait(60)
    child = multiprocessing.get_context("fork").Process(target=store.put, args=(key(1), tensor(1)))
    child.start()
    child.join(timeout=20)
    exitcode = child.exitcode
    child.kill()
    go_on.set()
    thread.join()
    assert exitcode == 0


def test_a_journal_used_after_a_fork_is_a_new_file(store):
    shared = Journal(store.root / ".vlm-cache" / "journals.2", None)
    shared.append(line("d", 0, 0, "x"))
    child = multiprocessing.get_context("fork").Process(target=shared.append, args=(line("d", 0, 0, "y"),))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert len(journals_of(store)) == 2
    shared.close()


def test_the_total_is_right_however_the_journal_grows(store):
    chooser = random.Random(0)
    lines, sums, total = [], [0], 0
    for index in range(400):
        change = chooser.randrange(-50, 100)
        total += change
        names = [f"{'n' * chooser.randrange(1, 90)}_vlm{index}.pt"] * (90 if index % 50 == 0 else 1)
        lines.append(rows(line("w" if len(names) > 1 else "k", change, *names))[:])
        kind, _, _, rest = lines[-1].split(b"\t", 3)
        lines[-1] = b"\t".join((kind, str(change).encode(), str(total).encode(), rest))
        sums.append(total)
    content = b"".join(lines)
    view, position = Ledger(store.root), 0
    while position < len(content):
        step = chooser.choice((1, 7, 60, 900, 6000))
        write_journal(store, "a.journal", content[position : position + step])
        position += step
        view.refresh()
        assert view.total_bytes == sums[content[:position].count(b"\n")]


def test_any_flipped_byte_of_the_snapshot_is_noticed(open_store):
    store = open_store(limit_bytes=10**6)
    for index in range(20):
        store.put(key(index), tensor(index))
    store.close()
    store.stats()
    sound = snapshot_of(store.root).read_bytes()
    for position in range(0, len(sound), 13):
        damaged = bytearray(sound)
        damaged[position] ^= 0x01
        snapshot_of(store.root).write_bytes(damaged)
        again = open_store()
        stats = again.stats()
        assert (stats.entries, stats.bytes) == (20, published_bytes(store.root)), position
        assert sum(entry.bytes for entry in again.entries()) == published_bytes(store.root), position


def test_an_entry_that_two_runs_wrote_stays_while_one_of_them_lasts(open_store):
    first, second = open_store(limit_bytes=4 * 1650, run_id="first"), open_store(run_id="second")
    first.put(key(0), tensor(0))
    remove_snapshots(first.root)
    first.stats()
    second.put(key(0), tensor(1))
    second.close()
    other = open_store()
    for index in range(1, 9):
        other.put(key(index), tensor(index))
    assert other.contains(key(0))


@pytest.mark.parametrize("skew_s", [-86_400, 0, 86_400])
def test_journals_tell_the_file_systems_time_whatever_the_hosts_clock_says(open_store, monkeypatch, skew_s):
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + skew_s * 10**9)
    store = open_store(limit_bytes=10**6)
    store.put(key(0), tensor(0))
    monkeypatch.undo()
    view = Ledger(store.root)
    view.read()
    (path,) = journals_of(store)
    times_us = [int(raw.split(b"\t")[3]) for raw in path.read_bytes().splitlines()[1:]]
    times_us.append(view.changes.entries["episode_vlm0.pt"].written_us)
    assert len(times_us) >= 3
    assert all(abs(time_us * 1000 - real()) < 3600 * 10**9 for time_us in times_us)


def test_a_clock_set_back_does_not_change_the_order_of_one_journal(store):
    lines = [line("d", -5, 5, "a_vlm0.pt", time_us=200), line("p", 5, 5, 1, "", "", 0, "a_vlm0.pt", time_us=100)]
    write_journal(store, "a.journal", *lines)
    write_journal(store, "b.journal", line("d", 0, 0, "b_vlm0.pt", time_us=150))
    view = Ledger(store.root)
    view.read()
    assert view.changes.entries["a_vlm0.pt"] is not None
