"""File names follow the contract, and no key can leave the store."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import InvalidKey, StepKey, VideoKey, naming
from cache_store.dataset_names import canonical_dataset_name, known_aliases, names_to_search


def test_a_step_is_named_after_its_episode_and_index():
    assert naming.relative_path(StepKey("recv_all_20251027_170308", 30)) == "recv_all_20251027_170308_vlm30.pt"


def test_a_step_with_a_prompt_hash_lies_in_its_folder():
    digest = hashlib.sha256(b"Perform plug insertion task.").hexdigest()[:8]
    assert naming.prompt_hash("Perform plug insertion task.") == digest
    assert naming.relative_path(StepKey("ep", 0, digest)) == f"{digest}/ep_vlm0.pt"


def test_a_video_is_named_after_the_md5_that_the_longva_scripts_computed():
    signature = hashlib.md5(b"openai/clip-vit-large-patch14-336:layer-2").hexdigest()[:8]
    assert naming.model_signature("openai/clip-vit-large-patch14-336", -2) == signature
    digest = hashlib.md5(f"Video-MME:fFjv93ACGo8:nframe128:model{signature}".encode()).hexdigest()
    key = VideoKey("Video-MME", "fFjv93ACGo8", 128, signature)
    assert naming.relative_path(key) == f"Video-MME/{digest}.pt"
    assert naming.relative_path(key, second_recipe="ab" * 32) == f"Video-MME@abababab/{digest}.pt"


@pytest.mark.parametrize(
    ("dataset", "word"),
    [
        ("", "empty"),
        (".", "dot"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("a/b", "separator"),
        ("a\\b", "separator"),
        ("a..b", "'..'"),
        ("a@b", "'@'"),
        ("a\nb", "control"),
        ("a\0b", "control"),
        ("a\x7fb", "control"),
        ("a\ud800", "surrogate"),
        ("é" * 91, "180 bytes"),
        (7, "not a string"),
    ],
)
def test_a_dangerous_data_set_name_is_refused_and_told_why(dataset, word):
    for key in (StepKey(dataset, 0), VideoKey(dataset, "v", 8, "0" * 8)):
        with pytest.raises(InvalidKey, match=word) as caught:
            naming.relative_path(key)
        assert caught.value.field == "dataset"


@pytest.mark.parametrize(
    "key",
    [
        StepKey(["a"], 0),
        VideoKey(["a"], "v", 1, "0" * 8),
        StepKey("a", -1),
        StepKey("a", True),
        StepKey("a", "1"),
        StepKey("a", 1.0),
        StepKey("a", 0, "xyz"),
        StepKey("a", 0, "ABCDEF01"),
        StepKey("a", 0, "../../.."),
        VideoKey("a", "v", 0, "0" * 8),
        VideoKey("a", "", 1, "0" * 8),
        VideoKey("a", "\ud800", 1, "0" * 8),
        VideoKey("a", "v", 1, ""),
        "a_vlm0",
    ],
)
def test_a_key_with_an_impossible_part_is_refused(key):
    with pytest.raises(InvalidKey):
        naming.relative_path(key)
    with pytest.raises(ValueError):
        naming.relative_path(key)


@given(dataset=st.text(max_size=200), index=st.integers(-5, 10**18), hashed=st.booleans())
def test_every_accepted_step_name_stays_inside_and_reads_back(dataset, index, hashed):
    key = StepKey(dataset, index, "0a1b2c3d" if hashed else None)
    try:
        path = naming.relative_path(key)
    except InvalidKey:
        return
    assert os.path.normpath(path) == path
    assert path.count("/") == int(hashed)
    assert not path.startswith(".")
    assert len(os.path.basename(path).encode()) <= 255
    assert naming.parse(path).key == key


@given(dataset=st.text(max_size=200), fingerprint=st.none() | st.just("0a1b2c3d"))
def test_every_accepted_video_name_tells_its_data_set(dataset, fingerprint):
    try:
        path = naming.relative_path(VideoKey(dataset, "v", 8, "0" * 8), second_recipe=fingerprint)
    except InvalidKey:
        return
    parsed = naming.parse(path)
    assert (parsed.dataset, parsed.fingerprint8, parsed.is_video) == (dataset, fingerprint, True)


@given(st.text(max_size=60))
def test_parsing_any_name_never_fails(name):
    naming.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.pt",
        "a_vlm01.pt",
        "a_vlm.pt",
        "_vlm1.pt",
        "x/y/a_vlm1.pt",
        "/a_vlm1.pt",
        "notahash/a_vlm1.pt",
        "cache_meta.json",
    ],
)
def test_names_that_are_no_feature_are_left_alone(name):
    assert naming.parse(name) is None


def test_temporary_names_never_repeat_and_are_no_features():
    names = {naming.temp_name() for _ in range(100)}
    assert len(names) == 100
    assert not any(name.endswith(".pt") or naming.parse(name) for name in names)


def test_harness_names_lead_to_the_canonical_one():
    for name in ("Video-MME_128frame", "Video-MME_1fps_subs", "videomme", "video_mme", "Video-MME"):
        assert canonical_dataset_name(name) == "Video-MME"
    assert canonical_dataset_name("my_videos") == "my_videos"
    assert known_aliases("my_videos") == ()
    assert names_to_search("videomme")[:2] == ("videomme", "Video-MME")
    assert "Video-MME_64frame" in names_to_search("Video-MME")


@pytest.mark.parametrize(
    ("canonical", "names"),
    [
        ("Video-MME", ["Video-MME_128frame", "Video-MME_0.5fps_subs", "videomme", "videomme_long_w_subtitle"]),
        ("LongVideoBench", ["LongVideoBench_64frame", "longvideobench_val_v", "longvideobench_test_v"]),
        ("VideoMMMU", ["VideoMMMU_1fps", "video_mmmu_perception", "video_mmmu_adaptation_random_choice"]),
        ("MVBench", ["MVBench_MP4_8frame", "MVBench_MP4_1fps", "mvbench_moving_count", "mvbench_state_change"]),
        ("TempCompass", ["TempCompass_MCQ", "TempCompass_YorN", "TempCompass_Captioning", "tempcompass_yes_no"]),
        ("MLVU", ["MLVU_8frame", "MLVU_MCQ", "MLVU_OpenEnded", "mlvu_dev"]),
    ],
)
def test_every_name_that_a_harness_passes_leads_to_its_benchmark(canonical, names):
    for name in names:
        assert canonical_dataset_name(name) == canonical
        assert canonical in names_to_search(name)
    # Other videos: a test set of MLVU's, and questions without any.
    for other in ("mlvu_test", "videomme_no_visual", "video_mmmu_adaptation_question_only", "mvbench_mine"):
        assert canonical_dataset_name(other) == other
