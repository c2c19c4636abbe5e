"""Alias folders, those of second recipes too, come under the canonical name, and no two recipes are mixed."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from cache_store import VideoKey, archive, recipe_fingerprint
from cache_store.codec import encode
from cache_store.migration import migrate
from cache_store.migration_sources import moves_of_aliases
from tests.cache_store.conftest import tensor

ALIAS, SIGNATURE = "Video-MME_128frame", "0123abcd"
FIRST, SECOND = {"weights": "original"}, {"weights": "fine-tuned"}
FIRST8, SECOND8 = (recipe_fingerprint(recipe)[:8] for recipe in (FIRST, SECOND))


def alias(video_id, dataset=ALIAS):
    return VideoKey(dataset, video_id, 8, SIGNATURE)


def canonical(video_id):
    return alias(video_id, "Video-MME")


def content(seed, video_id, dataset=ALIAS):
    features = tensor(seed)
    return {"vision_features": features, "video_id": video_id, "nframe": 8, "dataset": dataset,
            "model_signature": SIGNATURE}  # fmt: skip


def run(store, folder, *, recipe=None, dry_run=False):
    return {
        (one.source.removeprefix(f"{folder}/").partition("/")[0], one.outcome, (one.target or "").partition("/")[0])
        for one in migrate(store, moves_of_aliases(folder), recipe=recipe, dry_run=dry_run)
    }


def seed_in(store, video_id, **options):
    found = store.get(canonical(video_id), **options)
    features = found["vision_features"] if isinstance(found, dict) else found
    return next(seed for seed in range(9) if torch.equal(features, tensor(seed)))


@pytest.fixture
def old(open_store):
    """A store whose caller used the alias for two recipes of one video."""
    store = open_store("old")
    store.put(alias("a"), content(1, "a"), recipe=FIRST)
    store.put(alias("a"), content(2, "a"), recipe=SECOND, provenance={"host": "x"})
    return store


@pytest.mark.parametrize("recipe", [None, {"weights": "given"}])
def test_a_second_recipe_stays_beside_the_first(open_store, old, recipe):
    store = open_store()
    expected = {(ALIAS, "copied", "Video-MME"), (f"{ALIAS}@{SECOND8}", "copied", f"Video-MME@{SECOND8}")}
    assert run(store, old.root, recipe=recipe, dry_run=True) == expected
    assert run(store, old.root, recipe=recipe) == expected
    assert seed_in(store, "a") == seed_in(store, "a", recipe=FIRST) == 1
    assert seed_in(store, "a", recipe=SECOND) == 2
    path = store.path_of(canonical("a"), recipe=SECOND)
    assert torch.load(path, weights_only=True)["dataset"] == "Video-MME"
    record = archive.read_record(path)
    assert (record.key["dataset"], record.provenance) == ("Video-MME", {"host": "x"})
    assert {outcome for _, outcome, _ in run(store, old.root)} == {"there"}


def test_a_migration_within_the_store_leaves_the_old_folders(old):
    before = {path: path.read_bytes() for path in old.root.rglob("*.pt")}
    assert {outcome for _, outcome, _ in run(old, old.root)} == {"copied"}
    assert {path: path.read_bytes() for path in before} == before
    assert seed_in(old, "a", recipe=SECOND) == 2


def test_a_second_recipe_does_not_take_a_plain_folder_of_files_without_any(open_store, tmp_path):
    folder = tmp_path / "scripts"
    name = f"{'0' * 32}.pt"
    with_recipe = open_store("other")
    with_recipe.put(alias("z"), content(3, "z"), recipe=FIRST)
    second = with_recipe.put(alias("b"), content(2, "b"), recipe=SECOND)
    (folder / second.parent.name).mkdir(parents=True)
    (folder / second.parent.name / second.name).write_bytes(second.read_bytes())
    (folder / ALIAS).mkdir()
    plain = with_recipe.path_of(alias("a"))
    torch.save(content(1, "a"), folder / ALIAS / plain.name)
    torch.save(content(1, "a"), folder / ALIAS / name)
    store = open_store()
    assert run(store, folder) == {
        (ALIAS, "copied", "Video-MME"),
        (ALIAS, "skipped", ""),
        (second.parent.name, "copied", f"Video-MME@{SECOND8}"),
    }
    assert store.path_of(canonical("b"), recipe=FIRST).parent.name == "Video-MME"
    assert seed_in(store, "b", recipe=SECOND) == 2


def test_what_owns_the_canonical_folder_already_keeps_it(open_store, old):
    store = open_store()
    store.put(canonical("x"), content(5, "x", "Video-MME"), recipe=SECOND)
    assert run(store, old.root) == {
        (ALIAS, "copied", f"Video-MME@{FIRST8}"),
        (f"{ALIAS}@{SECOND8}", "copied", "Video-MME"),
    }
    assert (seed_in(store, "a", recipe=FIRST), seed_in(store, "a", recipe=SECOND)) == (1, 2)


def test_recipes_of_two_aliases_do_not_contend_but_two_features_of_one_recipe_do(open_store, tmp_path):
    old = open_store("old")
    for number, dataset in enumerate((ALIAS, "videomme")):
        old.put(alias("a", dataset), content(number, "a", dataset), recipe=(FIRST, SECOND)[number])
        old.put(alias("b", dataset), content(number, "b", dataset), recipe=FIRST)
    store = open_store()
    assert run(store, old.root) == {
        (ALIAS, "copied", "Video-MME"),
        (ALIAS, "conflict", "Video-MME"),
        ("videomme", "copied", f"Video-MME@{SECOND8}"),
        (f"videomme@{FIRST8}", "conflict", "Video-MME"),
    }
    assert not store.contains(canonical("b"))


def test_a_file_whose_folder_names_another_recipe_stays(open_store, old, tmp_path):
    path = old.path_of(alias("a"), recipe=SECOND)
    wrong = path.parent.with_name(f"{ALIAS}@00000000")
    path.parent.rename(wrong)
    torch.save(content(3, "b"), wrong / old.path_of(alias("b")).name)
    store = open_store()
    found = list(migrate(store, moves_of_aliases(old.root), recipe=None, dry_run=False))
    reasons = sorted(one.reason for one in found if one.outcome == "skipped")
    assert [one.outcome for one in found] == ["copied", "skipped", "skipped"]
    assert "recipe 00000000, but it carries none" in reasons[0]
    assert f"recipe 00000000, but its record says {SECOND8}" in reasons[1]


def test_a_recipe_may_be_given_to_files_of_its_own_folder(open_store, tmp_path):
    folder = tmp_path / "old" / f"{ALIAS}@{SECOND8}"
    folder.mkdir(parents=True)
    torch.save(content(3, "b"), folder / open_store().path_of(alias("b")).name)
    store = open_store()
    assert run(store, tmp_path / "old", recipe=SECOND) == {(folder.name, "copied", f"Video-MME@{SECOND8}")}
    assert seed_in(store, "b", recipe=SECOND) == 3


@pytest.mark.parametrize("value", [tensor(4), {"vision_features": tensor(4)}, [tensor(4)]])
def test_a_file_of_ours_that_names_its_video_in_the_record_alone_comes_along_as_it_is(open_store, value):
    old, store = open_store("old"), open_store()
    old.put(alias("a"), value, recipe=FIRST)
    assert run(store, old.root) == {(ALIAS, "copied", "Video-MME")}
    found = store.get(canonical("a"), recipe=FIRST)
    assert type(found) is type(value)
    assert not isinstance(found, dict) or found.keys() == value.keys()
    assert not isinstance(found, torch.Tensor) or torch.equal(found, value)
    assert list(store.keys()) == [canonical("a")]


@pytest.mark.parametrize(
    "key", [None, {"kind": "step", "dataset": "e", "vlm_idx": 1, "prompt_hash": None}, ["video_id"], {"video_id": "b"}]
)
def test_a_bare_tensor_whose_record_names_another_video_or_none_stays(open_store, tmp_path, key):
    path = tmp_path / "old" / ALIAS / open_store().path_of(alias("a")).name
    path.parent.mkdir(parents=True)
    if key == {"video_id": "b"}:
        key.update(nframe=8, model_signature=SIGNATURE)
    path.write_bytes(b"".join(encode(tensor(1), record=archive.Record(key))))
    assert run(open_store(), tmp_path / "old") == {(ALIAS, "skipped", "")}


def test_a_recipe_that_cannot_be_stored_is_named(open_store, tmp_path):
    path = tmp_path / "old" / ALIAS / open_store().path_of(alias("a")).name
    path.parent.mkdir(parents=True)
    torch.save(content(1, "a"), path)
    record = {"format": 1, "key": None, "recipe": {"x": float("nan")}, "recipe_fingerprint": None, "provenance": None}
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        file.writestr("archive/vlm_cache.json", json.dumps(record))
    (found,) = migrate(open_store(), moves_of_aliases(tmp_path / "old"), recipe=None, dry_run=False)
    assert (found.outcome, found.reason[:26]) == ("skipped", "its recipe cannot be store")
