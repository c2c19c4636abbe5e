"""Old caches come under today's names bit for bit, and what cannot be moved safely is named and stays."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from cache_store import FeatureStore, StepKey, StoreFull, VideoKey, VLACacheManager, int8, prompt_hash, video_value
from cache_store.migration import migrate
from cache_store.migration_names import NamesFileError, read_names
from cache_store.migration_sources import Move, moves_of_aliases, moves_of_names, moves_to_flat, moves_to_tree
from tests.cache_store.conftest import tensor

SIGNATURE = hashlib.md5(b"openai/clip-vit-large-patch14-336:layer-2").hexdigest()[:8]


def outcomes(store, moves, **options):
    return [
        (one.outcome, one.target)
        for one in migrate(store, iter(moves), **{"recipe": None, "dry_run": False, **options})
    ]


def write_old_steps(folder, prompt_hash=None):
    """As the robot scripts wrote them."""
    target = folder if prompt_hash is None else folder / prompt_hash
    target.mkdir(parents=True, exist_ok=True)
    for index in (0, 30):
        torch.save(tensor(index), target / f"recv_all_1_vlm{index}.pt")


def recipe_of(instruction):
    """As `pipeline.recipe` makes the part that is about the instruction."""
    return {"prompt": {"instruction_sha256": hashlib.sha256(instruction.encode()).hexdigest()}}


def write_old_video(folder, alias, video_id, seed, nframe=8):
    """As the LongVA scripts wrote them, under the name that the harness gave the data set."""
    digest = hashlib.md5(f"{alias}:{video_id}:nframe{nframe}:model{SIGNATURE}".encode()).hexdigest()
    (folder / alias).mkdir(parents=True, exist_ok=True)
    path = folder / alias / f"{digest}.pt"
    features = tensor(seed, width=128)
    torch.save(
        {
            "vision_features": features,
            "video_id": video_id,
            "video_path": f"videos/{video_id}.mp4",
            "nframe": nframe,
            "dataset": alias,
            "model_signature": SIGNATURE,
            "dtype": "float16",
            "shape": list(features.shape),
        },
        path,
    )
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"%(a)s": ["recv_all_1", 0], "%(b)s": ["recv_all_1", 30]}',
        '{"%(a)s": "recv_all_1_vlm0", "%(b)s.pt": "recv_all_1_vlm30.pt"}',
        '{"recv_all_1_vlm0": "%(a)s", "recv_all_1_vlm30": "%(b)s.pt"}',
        "hash,dataset,vlm_idx\n%(a)s,recv_all_1,0\n%(b)s.pt,recv_all_1,30\n",
        "vlm_idx\thash\tdataset\n0\t%(a)s\trecv_all_1\n30\t%(b)s\trecv_all_1\n",
    ],
)
def test_hash_named_files_get_the_names_of_their_list(open_store, tmp_path, text):
    old = tmp_path / "old"
    old.mkdir()
    stems = {name: hashlib.sha256(name.encode()).hexdigest()[:16] for name in "ab"}
    torch.save(tensor(0), old / f"{stems['a']}.pt")
    torch.save(tensor(30), old / f"{stems['b']}.pt")
    torch.save(tensor(9), old / "0123456789abcdef.pt")  # not in the list
    (tmp_path / "names").write_text(text % stems)
    store = open_store()
    moves = list(moves_of_names(old, read_names(tmp_path / "names").names))
    assert {outcome for outcome, _ in outcomes(store, moves)} == {"copied"}
    assert torch.equal(VLACacheManager(store.root).load_cache("recv_all_1", 30), tensor(30))
    assert torch.equal(torch.load(store.root / "recv_all_1_vlm0.pt", weights_only=True), tensor(0))
    assert (store.root / "recv_all_1_vlm0.pt").read_bytes() == (old / f"{stems['a']}.pt").read_bytes()
    assert {outcome for outcome, _ in outcomes(store, moves)} == {"there"}
    assert len(list(old.iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("hash,dataset\nabcdef12,x\n", "columns"),
        ('["abcdef12"]', "object"),
        ('{"abcdef12": "recv_vlm0",\n"abcdef13"', "line 2"),
        ('{"abcdef12": ["recv", ' + "9" * 5000 + "]}", "digits"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_list_that_cannot_be_understood_at_all_is_refused_with_its_line(tmp_path, text, word):
    (tmp_path / "names").write_text(text)
    with pytest.raises(NamesFileError, match=word):
        read_names(tmp_path / "names")


def test_prompt_hash_folders_become_flat_and_back(open_store):
    store = open_store()
    write_old_steps(store.root, "0a1b2c3d")
    assert outcomes(store, moves_to_flat(store.root)) == [
        ("copied", "recv_all_1_vlm0.pt"),
        ("copied", "recv_all_1_vlm30.pt"),
    ]
    back = open_store("back")
    assert {target for _, target in outcomes(back, moves_to_tree(store.root, prompt_hash="ffff0000"))} == {
        "ffff0000/recv_all_1_vlm0.pt",
        "ffff0000/recv_all_1_vlm30.pt",
    }
    assert torch.equal(back.get(StepKey("recv_all_1", 30, "ffff0000")), tensor(30))


def test_the_flat_form_goes_into_the_folder_of_the_instruction_that_each_file_tells(open_store):
    old, store = open_store("old"), open_store()
    put_under, built = prompt_hash("by its key"), prompt_hash("by its recipe")
    old.put(StepKey("e", 0, put_under), tensor(0), recipe=recipe_of("another"))
    (old.root / put_under / "e_vlm0.pt").rename(old.root / "e_vlm0.pt")
    old.put(StepKey("e", 30), tensor(30), recipe=recipe_of("by its recipe"))
    old.put(StepKey("e", 60), tensor(60), recipe={"prompt": ["unknown"]})
    torch.save(tensor(90), old.root / "e_vlm90.pt")
    found = [
        ("copied", f"{put_under}/e_vlm0.pt"),
        ("copied", f"{built}/e_vlm30.pt"),
        ("skipped", None),
        ("skipped", None),
    ]
    assert outcomes(store, moves_to_tree(old.root)) == found
    assert torch.equal(store.get(StepKey("e", 30, built)), tensor(30))
    assert outcomes(store, moves_to_tree(old.root, prompt_hash=built)) == [
        ("skipped", None),
        ("there", f"{built}/e_vlm30.pt"),
        ("copied", f"{built}/e_vlm60.pt"),
        ("copied", f"{built}/e_vlm90.pt"),
    ]


def test_a_file_that_tells_another_instruction_stays_with_the_reason(open_store):
    old, store = open_store("old"), open_store()
    old.put(StepKey("e", 30), tensor(30), recipe=recipe_of("one"))
    (found,) = migrate(store, moves_to_tree(old.root, prompt_hash="ffff0000"), recipe=None, dry_run=False)
    assert found.outcome == "skipped"
    assert f"its record says prompt hash {prompt_hash('one')}, not ffff0000" in found.reason


def test_hash_named_files_of_ours_need_no_list(open_store):
    old, store, flat = open_store("old"), open_store(), open_store("flat")
    for index, told in ((0, None), (30, "0a1b2c3d")):
        path = old.put(StepKey("e", index, told), tensor(index), recipe=recipe_of("one"))
        path.rename(old.root / f"{index:016x}.pt")
    torch.save(tensor(9), old.root / "0123456789abcdef.pt")
    assert outcomes(store, moves_to_tree(old.root)) == [
        ("copied", f"{prompt_hash('one')}/e_vlm0.pt"),
        ("copied", "0a1b2c3d/e_vlm30.pt"),
    ]
    assert outcomes(flat, moves_to_flat(old.root)) == [("copied", "e_vlm0.pt"), ("copied", "e_vlm30.pt")]
    for path in old.root.glob("*.pt"):
        path.unlink()  # the store owns no such names


def test_two_prompts_for_one_step_are_a_conflict_unless_one_is_chosen(open_store):
    store = open_store()
    write_old_steps(store.root, "0a1b2c3d")
    torch.save(tensor(5), store.root / "0a1b2c3d" / "recv_all_1_vlm60.pt")
    (store.root / "ffff0000").mkdir()
    torch.save(tensor(6), store.root / "ffff0000" / "recv_all_1_vlm60.pt")
    found = outcomes(store, moves_to_flat(store.root))
    assert found.count(("conflict", "recv_all_1_vlm60.pt")) == 2
    assert not store.contains(StepKey("recv_all_1", 60))
    other = open_store("other")
    assert outcomes(other, moves_to_flat(store.root, prompt_hash="ffff0000")) == [("copied", "recv_all_1_vlm60.pt")]


def test_alias_folders_come_under_the_canonical_name(open_store):
    store = open_store()
    write_old_video(store.root, "Video-MME_128frame", "abc", 1)
    stray = write_old_video(store.root, "Video-MME_128frame", "def", 2)
    stray.rename(stray.with_name("0" * 32 + ".pt"))
    torch.save(tensor(3), stray.with_name("1" * 32 + ".pt"))
    found = outcomes(store, moves_of_aliases(store.root))
    assert sorted(outcome for outcome, _ in found) == ["copied", "skipped", "skipped"]
    key = VideoKey("Video-MME", "abc", 8, SIGNATURE)
    value = store.get(key)
    assert value["dataset"] == "Video-MME"
    assert torch.equal(value["vision_features"], tensor(1, width=128))
    assert {outcome for outcome, _ in outcomes(store, moves_of_aliases(store.root))} == {"there", "skipped"}


def test_a_recipe_may_be_given_to_files_that_carry_none(open_store):
    store = open_store()
    write_old_steps(store.root, "0a1b2c3d")
    outcomes(store, moves_to_flat(store.root), recipe={"weights": "a"})
    assert store.state_of(StepKey("recv_all_1", 0), recipe={"weights": "b"}) == "stale"
    assert torch.equal(store.get(StepKey("recv_all_1", 0), recipe={"weights": "a"}), tensor(0))


def test_a_recipe_is_given_to_our_own_files_that_were_put_without_one(open_store):
    store, recipe = open_store(), {"weights": "a"}
    store.put(StepKey("recv_all_1", 3, "0a1b2c3d"), tensor(3), provenance={"x": 1})
    old, key = (VideoKey(name, "v", 8, SIGNATURE) for name in ("Video-MME_8frame", "Video-MME"))
    store.put(old, video_value(old, tensor(4), video_path="v.mp4"))
    outcomes(store, moves_to_flat(store.root), recipe=recipe)
    outcomes(store, moves_of_aliases(store.root), recipe=recipe)
    assert [store.record_of(made).recipe for made in (StepKey("recv_all_1", 3), key)] == [recipe, recipe]
    assert store.record_of(StepKey("recv_all_1", 3)).provenance["x"] == 1
    assert torch.equal(store.get(StepKey("recv_all_1", 3), recipe=recipe), tensor(3))


def test_a_recipe_that_a_feature_cannot_have_is_named_and_costs_no_other(open_store):
    store = open_store()
    value = {"vision_features": torch.ones(1, 2, 8, dtype=torch.float16)}
    store.put(StepKey("recv_all_1", 0), value, recipe={int8.RECIPE_FIELD: dict(int8.STORAGE)})
    store.put(StepKey("recv_all_1", 3, "0a1b2c3d"), store.get(StepKey("recv_all_1", 0)))
    store.put(StepKey("recv_all_1", 6, "0a1b2c3d"), tensor(6))
    moves = sorted(moves_to_flat(store.root), key=lambda move: move.source)
    assert [one for one, _ in outcomes(store, moves, recipe={"weights": "a"})] == ["skipped", "copied"]


def test_our_own_files_keep_their_recipe_and_all_their_bytes(open_store):
    store = open_store()
    path = store.put(StepKey("recv_all_1", 3, "0a1b2c3d"), tensor(3), recipe={"weights": "a"}, provenance={"x": 1})
    outcomes(store, moves_to_flat(store.root))
    assert (store.root / "recv_all_1_vlm3.pt").read_bytes() == path.read_bytes()
    assert store.state_of(StepKey("recv_all_1", 3), recipe={"weights": "b"}) == "stale"


def test_a_dry_run_copies_nothing(open_store):
    store = open_store()
    write_old_steps(store.root, "0a1b2c3d")
    assert {outcome for outcome, _ in outcomes(store, moves_to_flat(store.root), dry_run=True)} == {"copied"}
    assert not list(store.root.glob("*.pt"))


def test_damaged_files_and_links_are_named_or_left_alone(open_store, tmp_path):
    old = tmp_path / "old"
    write_old_steps(old, "0a1b2c3d")
    path = old / "0a1b2c3d" / "recv_all_1_vlm0.pt"
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content[:-40])
    (old / "0a1b2c3d" / "recv_all_1_vlm60.pt").symlink_to("/etc/passwd")
    store = open_store()
    assert outcomes(store, moves_to_flat(old)) == [
        ("damaged", "recv_all_1_vlm0.pt"),
        ("copied", "recv_all_1_vlm30.pt"),
    ]
    assert path.exists()


def test_the_limit_of_the_store_holds(open_store, tmp_path):
    write_old_steps(tmp_path / "old", "0a1b2c3d")
    store = open_store(limit_bytes=2500)
    with pytest.raises(StoreFull):
        outcomes(store, moves_to_flat(tmp_path / "old"))
    assert store.stats().entries == 1
    store.set_limit(5000)
    assert [outcome for outcome, _ in outcomes(store, moves_to_flat(tmp_path / "old"))] == ["there", "copied"]


def test_an_interrupted_migration_goes_on(open_store, tmp_path):
    write_old_steps(tmp_path / "old", "0a1b2c3d")
    store = open_store()
    next(migrate(store, moves_to_flat(tmp_path / "old"), recipe=None, dry_run=False))
    assert outcomes(open_store(), moves_to_flat(tmp_path / "old")) == [
        ("there", "recv_all_1_vlm0.pt"),
        ("copied", "recv_all_1_vlm30.pt"),
    ]


def test_a_hostile_key_is_skipped(open_store, tmp_path):
    torch.save(tensor(1), tmp_path / "x.pt")
    (found,) = outcomes(open_store(), [Move(tmp_path / "x.pt", StepKey("../x", 1))])
    assert found == ("skipped", None)


def test_the_command_prints_counts_and_what_may_be_deleted(tmp_path, capsys):
    from jobs.__main__ import main

    old, store, listed = tmp_path / "old", tmp_path / "store", tmp_path / "done.txt"
    write_old_steps(old, "0a1b2c3d")
    command = ["migrate", "--store", str(store), "--from", str(old), "--to", "flat"]
    assert main([*command, "--dry-run"]) == 0
    assert "2 would be copied" in capsys.readouterr().out
    assert main([*command, "--json", "--write-list", str(listed)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["copied"], shown["conflict"], len(shown["files"])) == (2, 0, 2)
    assert sorted(listed.read_text().split()) == sorted(str(path) for path in old.glob("*/*.pt"))
    assert main(command) == 0
    assert "2 already there" in capsys.readouterr().out
    assert main([*command, "--prompt-hash", "0A1B2C3D"]) == 2
    torch.save(tensor(99), store / "recv_all_1_vlm0.pt")
    assert main(command) == 1
    assert "conflict" in capsys.readouterr().out
    assert isinstance(FeatureStore(store).get(StepKey("recv_all_1", 30)), torch.Tensor)
