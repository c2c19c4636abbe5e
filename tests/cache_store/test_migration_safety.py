"""What a migration must never do: lose a source to eviction, leave its folder, or list what a copy still needs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest
import torch

from cache_store import FeatureStore, StepKey, StoreFull
from cache_store.migration import migrate
from cache_store.migration_sources import moves_of_aliases, moves_of_names, moves_to_flat, moves_to_tree
from tests.cache_store.conftest import tensor

H, OTHER = "0123abcd", "89abcdef"


def run(store, folder, *, dry_run=False):
    return list(migrate(store, moves_to_flat(folder), recipe=None, dry_run=dry_run))


def old_tree(root, count, prompt_hash=H):
    (root / prompt_hash).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        torch.save(tensor(index), root / prompt_hash / f"episode_1_vlm{index}.pt")


def test_a_limit_stops_the_copies_and_evicts_no_source(open_store, tmp_path):
    root = tmp_path / "store"
    old_tree(root, 8)
    before = {path: path.read_bytes() for path in root.rglob("*.pt")}
    store = open_store(limit_bytes=sum(map(len, before.values())) * 3 // 2)
    with pytest.raises(StoreFull):
        run(store, root)
    assert {path: path.read_bytes() for path in before if path.exists()} == before


def test_copies_of_one_migration_are_not_evicted_by_its_later_ones(open_store, tmp_path):
    old_tree(tmp_path / "old", 8)
    size = sum(path.stat().st_size for path in (tmp_path / "old").rglob("*.pt"))
    store = open_store(limit_bytes=size // 2)
    with pytest.raises(StoreFull):
        run(store, tmp_path / "old")


def test_a_folder_that_is_a_link_is_not_followed(open_store, tmp_path):
    old_tree(tmp_path / "elsewhere", 1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / H).symlink_to(tmp_path / "elsewhere" / H)
    assert [moved for moved in run(open_store(), tmp_path / "old") if moved.outcome == "copied"] == []


def test_a_link_to_the_source_is_no_copy_of_it(tmp_path):
    root = tmp_path / "store"
    old_tree(root, 1)
    os.symlink(f"{H}/episode_1_vlm0.pt", root / "episode_1_vlm0.pt")
    with FeatureStore(root) as store:
        assert [moved.outcome for moved in run(store, root)] != ["there"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_two_prompts_of_one_step_conflict_and_neither_is_chosen(open_store, tmp_path, dry_run):
    for seed, prompt_hash in enumerate((H, OTHER)):
        (tmp_path / "old" / prompt_hash).mkdir(parents=True)
        torch.save(tensor(seed), tmp_path / "old" / prompt_hash / "episode_1_vlm0.pt")
    store = open_store()
    assert [moved.outcome for moved in run(store, tmp_path / "old", dry_run=dry_run)] == ["conflict", "conflict"]
    assert not store.contains(StepKey("episode_1", 0))


NOBODY = 65534


def everything_in(folder):
    """Names, contents and times of a tree."""
    paths = sorted(folder.rglob("*"))
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *paths)
    }


def as_nobody(work, *arguments):
    """What `work` returns in a process of an unprivileged user."""

    def run_as_nobody(results):
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            results.put(work(*arguments))
        except BaseException as exc:
            results.put(repr(exc))
            raise

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=run_as_nobody, args=(results,))
    process.start()
    try:
        return results.get(timeout=60)
    finally:
        process.join()


@pytest.fixture
def open_folder(tmp_path):
    """A folder that every user may enter, which pytest's own are not."""
    # Imports what is imported late: the interpreter may lie where an unprivileged user cannot read.
    old_cache_of_every_kind(tmp_path / "old")
    migrate_all(tmp_path / "old", tmp_path / "new")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "new").mkdir()
        os.chmod(Path(folder) / "new", 0o777)
        yield Path(folder)


def old_cache_of_every_kind(folder):
    old_tree(folder, 1)
    torch.save(tensor(1), folder / "flat_vlm3.pt")
    torch.save(tensor(2), folder / f"{OTHER}.pt")
    alias = folder / "Video-MME_128frame"
    alias.mkdir()
    content = {"vision_features": tensor(4), "video_id": "a", "nframe": 8, "model_signature": H}
    digest = hashlib.md5(f"{alias.name}:a:nframe8:model{H}".encode()).hexdigest()
    torch.save(content, alias / f"{digest}.pt")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def migrate_all(old, new):
    kinds = {
        "flat": moves_to_flat(old),
        "tree": moves_to_tree(old, prompt_hash=OTHER),
        "names": moves_of_names(old, {OTHER: StepKey("named", 1)}),
        "aliases": moves_of_aliases(old),
    }
    found = {}
    for kind, moves in kinds.items():
        with FeatureStore(new / kind) as store:
            found[kind] = [moved.outcome for moved in migrate(store, moves, recipe=None, dry_run=False)]
            assert store.verify(workers=1).problems == []
    return found


def test_a_folder_that_may_only_be_read_is_migrated_and_nothing_is_written_into_it(open_folder):
    old = open_folder / "old"
    old_cache_of_every_kind(old)
    before = everything_in(old)
    found = as_nobody(migrate_all, old, open_folder / "new")
    assert found == {kind: ["copied"] for kind in ("flat", "tree", "names", "aliases")}
    assert everything_in(old) == before
    for folder in (old, *old.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read")
@pytest.mark.parametrize("mode", [0o311, 0o744])
@pytest.mark.parametrize(("inner", "kind"), [(H, "flat"), ("Video-MME_128frame", "aliases")])
def test_an_inner_folder_that_may_not_be_read_is_named(open_folder, inner, kind, mode):
    old = open_folder / "old"
    old_cache_of_every_kind(old)
    (old / inner).chmod(mode)
    assert as_nobody(migrate_all, old, open_folder / "new")[kind] == ["damaged"]
    for folder in (old, old / H, old / "Video-MME_128frame"):
        folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read")
def test_a_file_that_may_not_be_read_is_named_and_the_others_copied(open_folder):
    old = open_folder / "old"
    old_tree(old, 2)
    (old / H / "episode_1_vlm0.pt").chmod(0)

    def outcomes():
        with FeatureStore(open_folder / "new") as store:
            return [moved.outcome for moved in run(store, old)]

    assert as_nobody(outcomes) == ["damaged", "copied"]
