"""`verify` reads every file, names everything that is wrong, and with `repair` moves damage aside without losing it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from cache_store import FeatureStore, StepKey, StoreWriteError, verification
from cache_store.errors import StoreReadError
from tests.cache_store.conftest import tensor


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store") as store:
        for index in range(5):
            store.put(StepKey("ep", index), tensor(index))
        yield store


@pytest.fixture(params=[1, 2])
def verify(request, store):
    return lambda **options: store.verify(**options, workers=request.param)


def damage(store, index, *, packed=False):
    path = store.file_of(StepKey("ep", index)) if packed else store.root / f"ep_vlm{index}.pt"
    data = bytearray(path.read_bytes())
    data[data.index(tensor(index).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    return path


def test_sound_files_have_no_problems_and_are_all_counted(store, verify):
    seen = []
    report = verify(progress=seen.append)
    assert (report.checked, report.problems, report.not_features, report.repaired) == (5, [], [], False)
    assert report.bytes == sum(path.stat().st_size for path in store.root.glob("*.pt"))
    assert max(progress.files for progress in seen) == 5
    assert {progress.total_files for progress in seen} == {5}


def test_every_damaged_file_is_named_and_left_where_it_is(store, verify):
    for index in (1, 3):
        damage(store, index)
    report = verify()
    assert [(p.path, p.quarantined_to) for p in report.problems] == [("ep_vlm1.pt", None), ("ep_vlm3.pt", None)]
    assert "checksum" in report.problems[0].reason
    assert len(list(store.root.glob("*.pt"))) == 5


def test_repair_moves_damaged_files_aside_byte_for_byte_and_the_books_know(store, verify):
    path = damage(store, 2)
    content = path.read_bytes()
    report = verify(repair=True)
    assert report.repaired
    (problem,) = report.problems
    assert not path.exists()
    assert (store.root / problem.quarantined_to).read_bytes() == content
    assert not problem.quarantined_to.endswith(".pt")
    assert store.stats().entries == 4
    assert verify(repair=True).problems == []


def test_processes_find_and_move_what_threads_do(store, monkeypatch):
    monkeypatch.setattr(verification, "_PROCESSES_FROM_FILES", 1)
    damage(store, 2)
    report = store.verify(repair=True, workers=2)
    assert (report.checked, [problem.path for problem in report.problems]) == (5, ["ep_vlm2.pt"])
    assert (store.root / report.problems[0].quarantined_to).exists()


def test_pt_files_that_are_no_features_are_told_apart_and_never_touched(store, verify):
    (store.root / "models").mkdir()
    theirs = [store.root / "model.pt", store.root / "models" / "tower.pt", store.root / "a_vlm01.pt"]
    for path in theirs:
        path.write_bytes(b"not ours")
    report = verify(repair=True)
    assert report.problems == []
    assert report.not_features == ["a_vlm01.pt", "model.pt", "models/tower.pt"]
    assert all(path.read_bytes() == b"not ours" for path in theirs)


def test_files_of_plain_torch_save_are_verified_too(store, verify):
    torch.save(tensor(9), store.root / "theirs_vlm0.pt")
    assert verify().checked == 6


def test_what_is_no_file_is_named_and_not_waited_for(store, verify):
    os.mkfifo(store.root / "pipe_vlm0.pt")
    (store.root / "folder_vlm0.pt").mkdir()
    (store.root / "link_vlm0.pt").symlink_to("nowhere")
    report = verify(repair=True)
    assert [problem.path for problem in report.problems] == ["folder_vlm0.pt", "link_vlm0.pt", "pipe_vlm0.pt"]
    assert all(problem.quarantined_to is None for problem in report.problems)


def test_files_and_folders_that_cannot_be_read_are_problems_and_stay(store, monkeypatch):
    def refuse(path):
        raise StoreReadError(str(path), PermissionError(13, "Permission denied"))

    real = os.scandir

    def refuse_folder(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    (store.root / "locked").mkdir()
    monkeypatch.setattr(verification.archive, "check", refuse)
    monkeypatch.setattr(verification.os, "scandir", refuse_folder)
    report = store.verify(repair=True, workers=1)
    assert len(report.problems) == 6
    assert all("Permission denied" in problem.reason for problem in report.problems)
    assert all(problem.quarantined_to is None for problem in report.problems)
    assert len(list(store.root.glob("*.pt"))) == 5


def test_a_file_that_is_replaced_after_it_was_read_is_not_moved(store, monkeypatch):
    damage(store, 0)
    real = verification.archive.check

    def check_and_replace(path):
        reason = real(path)
        if reason is not None:
            store.put(StepKey("ep", 0), tensor(0))
        return reason

    monkeypatch.setattr(verification.archive, "check", check_and_replace)
    assert store.verify(repair=True, workers=1).problems == []
    assert torch.equal(store.get(StepKey("ep", 0)), tensor(0))


def test_a_damaged_file_that_cannot_be_moved_is_still_named(store, monkeypatch):
    damage(store, 0)

    def refuse(name, reason):
        raise StoreWriteError(name, PermissionError(30, "Read-only file system"))

    monkeypatch.setattr(store._books, "set_aside", refuse)
    (problem,) = store.verify(repair=True, workers=1).problems
    assert "could not be set aside: Read-only file system" in problem.reason


def test_a_checking_process_that_dies_loses_no_file(store, monkeypatch):
    damage(store, 4)
    monkeypatch.setattr(verification, "_PROCESSES_FROM_FILES", 1)
    monkeypatch.setattr(verification.sys, "executable", "/bin/false")
    report = store.verify(workers=2)
    assert (report.checked, len(report.problems)) == (5, 1)


def test_an_error_in_the_callers_progress_ends_the_check(store):
    def stop(progress):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        store.verify(stop, workers=2)
    with pytest.raises(ValueError, match="at least 1"):
        store.verify(workers=0)


def test_checking_processes_need_no_guarded_main_module(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from cache_store import FeatureStore, verification\n"
        "verification._PROCESSES_FROM_FILES = 1\n"
        f"print(FeatureStore({str(store.root)!r}).verify(workers=2).checked)\n"
    )
    package = str(verification.Path(verification.__file__).parents[1])
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={"PYTHONPATH": package})
    assert done.stdout == "5\n", done.stderr


def test_a_sample_reads_its_features_alone_and_its_seed_draws_them_again(store, verify):
    read = []
    report = verify(progress=read.append, sample=2)
    assert (report.checked, report.problems, read[-1].total_files) == (2, [], 2)
    for index in range(5):
        damage(store, index)
    first, again = verify(sample=2, seed=report.seed), verify(sample=2, seed=report.seed)
    assert (first.checked, len(first.problems), first.seed) == (2, 2, report.seed)
    assert again == first
    assert verify(sample=9).checked == 5
    drawn = {problem.path for seed in range(40) for problem in verify(sample=1, seed=seed).problems}
    assert len(drawn) == 5


def test_a_seed_draws_the_same_features_whether_they_are_loose_packed_or_both(store):
    for index in range(5):
        damage(store, index)
    drawn = {seed: [problem.path for problem in store.verify(sample=2, seed=seed).problems] for seed in range(6)}
    for index in range(5):
        store.put(StepKey("ep", index), tensor(index))
    store.pack()
    damage(store, 0, packed=True)
    store.put(StepKey("ep", 1), tensor(1))  # hides its packed copy
    for seed, names in drawn.items():
        report = store.verify(sample=2, seed=seed)
        assert report.checked == 2
        assert [problem.path for problem in report.problems] == [name for name in names if name == "ep_vlm0.pt"]
    assert {"ep_vlm0.pt", "ep_vlm1.pt"} <= {name for names in drawn.values() for name in names}
    store.verify(repair=True)


@pytest.mark.parametrize(("options", "told"), [({"sample": 0}, "at least 1"), ({"seed": 3}, "how many")])
def test_a_sample_of_nothing_is_refused(store, options, told):
    with pytest.raises(ValueError, match=told):
        store.verify(**options)
