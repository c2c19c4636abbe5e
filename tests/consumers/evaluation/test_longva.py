"""LongVA with a cache answers exactly as without: every family of question, every way in which it went wrong before."""

from __future__ import annotations

import sys
import threading
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from cache_store import FeatureStore, InexactFeature, RecipeMismatch, int8, model_signature
from consumers.evaluation import (
    CachedVisionTower,
    EchoDifference,
    EvaluationError,
    FeatureMissing,
    FeatureUnfit,
    LongVA_Cached,
)
from consumers.evaluation.live_tower import FeatureTower
from consumers.evaluation.small_longva import IMAGE_TOKEN_INDEX, SmallLongVA
from pipeline.encoders import small_models
from pipeline.errors import MediaError
from tests.consumers.evaluation.conftest import DATASET, NFRAME, build, message

LETTERS = "ABCD"


@pytest.fixture(scope="module")
def plain():
    return LongVA_Cached("small", None, nframe=NFRAME, max_new_tokens=4)


@pytest.fixture
def no_tower(monkeypatch):
    """Any call of the live tower fails: what answers then came from the cache."""

    def refuse(*args):
        raise AssertionError("the live tower was called")

    def forbid(longva):
        monkeypatch.setattr(longva.model.get_vision_tower().vision_tower, "forward", refuse)

    return forbid


def cached(root, model="small", **options):
    return LongVA_Cached(model, root, nframe=NFRAME, max_new_tokens=4, **options)


@pytest.mark.parametrize("video_id", ["long", "short", "long@0.5-1.5"])
def test_logits_are_bitwise_those_of_the_uncached_model_and_nothing_is_decoded(
    plain, filled, videos, video_id, no_tower, monkeypatch
):
    question = message(videos, video_id)
    wanted, answer = plain.letter_logits(question, LETTERS), plain.generate_inner(question)
    longva = cached(filled, on_miss="raise")
    no_tower(longva)
    monkeypatch.setattr("pipeline.vision.decoding.decode_video", None)
    found = longva.letter_logits(question, LETTERS)
    assert torch.equal(found, wanted)
    assert longva.generate_inner(question, "Video-MME_128frame") == answer
    assert (longva.statistics.hits, longva.statistics.misses, longva.statistics.hit_rate) == (2, 0, 1.0)


def test_float32_is_bitwise_equal_too(videos, tmp_path):
    build(tmp_path / "store", videos, dtype="float32")
    longva = cached(tmp_path / "store", dtype="float32", on_miss="raise")
    plain = LongVA_Cached("small", None, nframe=NFRAME, dtype="float32")
    for video_id in videos:
        question = message(videos, video_id)
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
    assert longva.statistics.hit_rate == 1.0


def test_questions_about_different_videos_differ(plain, videos):
    """Else equal logits would show nothing."""
    long, short, clip = (plain.letter_logits(message(videos, video_id), LETTERS) for video_id in videos)
    assert not torch.equal(long, short)
    assert not torch.equal(long, clip)


def test_several_models_share_one_cache(filled, videos):
    question = message(videos, "long")
    answers = []
    for name in ("small", "small:1", "small:2"):
        longva, plain = cached(filled, name, on_miss="raise"), LongVA_Cached(name, None, nframe=NFRAME)
        answers.append(longva.letter_logits(question, LETTERS))
        assert torch.equal(answers[-1], plain.letter_logits(question, LETTERS))
        assert longva.statistics.hit_rate == 1.0
    assert not torch.equal(answers[0], answers[1])


def test_image_and_text_questions_are_answered_live_beside_the_cache(plain, filled, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(picture)
    longva = cached(filled, on_miss="raise")
    for question in (
        [{"type": "image", "value": picture}, {"type": "text", "value": "?"}],
        [{"type": "text", "value": "?"}],
    ):
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
    assert longva.statistics.hits + longva.statistics.misses == 0


@pytest.mark.parametrize("name", ["Video-MME", "Video-MME_128frame", "videomme", "Video-MME_8frame_subs", "video_mme"])
def test_no_alias_of_the_data_set_is_a_miss(filled, videos, name):
    longva = cached(filled, on_miss="raise", dataset=name)
    longva.letter_logits(message(videos, "long"), LETTERS)
    longva.letter_logits(message(videos, "long"), LETTERS, name)
    assert longva.statistics.hit_rate == 1.0


def test_a_video_whose_stem_repeats_is_found_by_its_path(videos, tmp_path):
    build(tmp_path / "store", {"part/long": videos["long"]})
    path = tmp_path / "data" / "part" / "long.mp4"
    path.parent.mkdir(parents=True)
    path.symlink_to(videos["long"][0])
    longva = cached(tmp_path / "store", on_miss="raise")
    longva.letter_logits([{"type": "video", "value": path}, {"type": "text", "value": "?"}], LETTERS)
    assert longva.statistics.hit_rate == 1.0


def test_of_ids_that_end_alike_the_one_with_most_of_the_path_is_taken(plain, videos, tmp_path):
    root, path = tmp_path / "store", tmp_path / "data" / "b" / "a" / "long.mp4"
    build(root, {"a/long": videos["short"], "b/a/long": videos["long"]})
    path.parent.mkdir(parents=True)
    path.symlink_to(videos["long"][0])
    question = [{"type": "video", "value": path}, {"type": "text", "value": "What happens?"}]
    longva = cached(root, on_miss="raise", echo=1.0)
    assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
    assert longva.statistics.echoes == 1


def linked(path, video):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(video[0])
    return [{"type": "video", "value": path}, {"type": "text", "value": "What happens?"}]


@pytest.mark.parametrize(
    ("there", "asked"),
    [("a/x.mp4", "b/a/x.mp4"), ("a/x.webm", "b/a/x.mp4"), ("x.mp4", "b/x.mp4"), ("x.MP4", "b/x.mp4")],
)
def test_a_missing_feature_is_not_that_of_a_video_in_a_folder_of_the_same_name(videos, tmp_path, there, asked):
    root = tmp_path / "store"
    build(root, {there.partition(".")[0]: videos["short"]})
    sound, missing = linked(tmp_path / "set" / there, videos["short"]), linked(tmp_path / "set" / asked, videos["long"])
    longva = cached(root, on_miss="raise")
    for _ in range(2):
        with pytest.raises(FeatureMissing, match=f"^{asked.partition('.')[0]} of Video-MME"):
            longva.letter_logits(missing, LETTERS)
        longva.letter_logits(sound, LETTERS)
    assert longva.statistics.hits == 2


@pytest.mark.parametrize("asked", ["flat/x.mp4", "set/b/../b/x.mp4", "flat/../b/x.mp4"])
@pytest.mark.parametrize("is_built", [True, False])
def test_a_path_through_links_and_parents_is_that_of_its_file(plain, videos, tmp_path, asked, is_built):
    build(tmp_path / "store", {"x": videos["short"]} | ({"b/x": videos["long"]} if is_built else {}))
    linked(tmp_path / "set" / "x.mp4", videos["short"])
    right = linked(tmp_path / "set" / "b" / "x.mp4", videos["long"])
    (tmp_path / "flat").symlink_to(tmp_path / "set" / "b")
    longva = cached(tmp_path / "store", on_miss="raise")
    question = [{**right[0], "value": tmp_path / asked}, right[1]]
    if not is_built:
        with pytest.raises(FeatureMissing, match=r"^b/x of Video-MME"):
            longva.letter_logits(question, LETTERS)
        return
    assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(right, LETTERS))


def test_a_path_through_parents_is_found_where_stems_do_not_repeat(filled, videos, tmp_path):
    question = linked(tmp_path / "set" / "long.mp4", videos["long"])
    (tmp_path / "set" / "b").mkdir()
    question[0]["value"] = tmp_path / "set" / "b" / ".." / "long.mp4"
    longva = cached(filled, on_miss="raise")
    longva.letter_logits(question, LETTERS)
    assert longva.statistics.hits == 1


def test_a_folder_behind_a_link_has_the_names_under_which_it_was_built(videos, tmp_path):
    """The data folder's `part` is a link to another disk."""
    build(tmp_path / "store", {"part/x": videos["long"], "other/x": videos["short"]})
    linked(tmp_path / "disk" / "x.mp4", videos["long"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part").symlink_to(tmp_path / "disk")
    longva = cached(tmp_path / "store", on_miss="raise")
    assert longva.video_id_of({"type": "video", "value": tmp_path / "data" / "part" / "x.mp4"}, DATASET) == "part/x"


class TestWhatIsKeptByPath:
    @pytest.fixture
    def questions(self, videos, tmp_path):
        """About two videos of one stem, of a data set of which nothing is built."""
        data = tmp_path / "data" / "video"
        return linked(data / "1_plotQA" / "1.mp4", videos["long"]), linked(data / "2_needle" / "1.mp4", videos["short"])

    def test_is_of_one_file_alone_and_found_by_the_next_process(self, plain, questions, tmp_path):
        wanted = [plain.letter_logits(question, LETTERS) for question in questions]
        for counts in ((0, 2), (2, 0)):
            longva = cached(tmp_path / "store", on_miss="keep", dataset="MLVU")
            found = [longva.letter_logits(question, LETTERS) for question in questions]
            assert all(map(torch.equal, found, wanted))
            assert (longva.statistics.hits, longva.statistics.misses) == counts

    def test_tells_clips_and_extensions_apart(self, plain, videos, tmp_path):
        whole, other = (
            linked(tmp_path / f"x.{end}", videos[name]) for end, name in (("mp4", "long"), ("webm", "short"))
        )
        clip = [{**whole[0], "start": 0.5, "end": 1.5}, whole[1]]
        longva = cached(tmp_path / "store", on_miss="keep")
        for question in (whole, other, clip):
            assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
        assert longva.statistics.misses == 3

    @pytest.mark.parametrize("on_miss", ["live", "raise"])
    def test_is_read_where_nothing_is_kept(self, plain, questions, tmp_path, on_miss):
        cached(tmp_path / "store", on_miss="keep").letter_logits(questions[0], LETTERS)
        longva = cached(tmp_path / "store", on_miss=on_miss)
        assert torch.equal(longva.letter_logits(questions[0], LETTERS), plain.letter_logits(questions[0], LETTERS))
        assert longva.statistics.hits == 1

    def test_is_not_taken_for_a_file_elsewhere_that_is_built_under_its_stem(self, plain, questions, videos, tmp_path):
        cached(tmp_path / "store", on_miss="keep").letter_logits(questions[0], LETTERS)
        build(tmp_path / "store", {"1": videos["short"]})
        longva = cached(tmp_path / "store", on_miss="raise")
        assert torch.equal(longva.letter_logits(questions[0], LETTERS), plain.letter_logits(questions[0], LETTERS))

    def test_gives_way_to_what_is_built(self, questions, videos, tmp_path):
        cached(tmp_path / "store", on_miss="keep").letter_logits(questions[0], LETTERS)
        build(tmp_path / "store", {"video/1_plotQA/1": videos["long"]})
        longva = cached(tmp_path / "store", on_miss="keep")
        assert longva.video_id_of(questions[0][0], DATASET) == "video/1_plotQA/1"
        longva.letter_logits(questions[0], LETTERS)
        assert longva.statistics.hits == 1


def test_a_clip_may_have_its_videos_id(plain, filled, videos):
    item, text = message(videos, "long@0.5-1.5")
    for named in ("long", "long@0.5-1.5"):
        longva = cached(filled, on_miss="raise")
        question = [{**item, "video_id": named}, text]
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
        assert longva.statistics.hit_rate == 1.0


def test_logits_that_are_no_numbers_are_no_answer(filled, videos):
    longva = cached(filled)
    language = next(module for name, module in longva.model.named_modules() if name.endswith("lm_head"))
    torch.nn.init.constant_(language.weight, float("nan"))
    with pytest.raises(EvaluationError, match=r"no finite numbers in torch\.float16"):
        longva.letter_logits(message(videos, "long"), LETTERS)


class TestMisses:
    def test_a_miss_is_computed_live_and_counted(self, plain, filled, videos):
        longva = cached(filled)
        question = [{**message(videos, "long")[0], "video_id": "elsewhere"}, {"type": "text", "value": "What happens?"}]
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
        assert (longva.statistics.hits, longva.statistics.misses) == (0, 1)

    def test_a_miss_can_be_an_error_that_names_the_video(self, filled, videos):
        longva = cached(filled, on_miss="raise")
        question = [{**message(videos, "long")[0], "video_id": "elsewhere"}, {"type": "text", "value": "?"}]
        with pytest.raises(FeatureMissing, match="elsewhere of Video-MME"):
            longva.letter_logits(question, LETTERS)
        assert (longva.statistics.hits, longva.statistics.misses) == (0, 1)

    def test_another_number_of_frames_is_a_miss(self, filled, videos):
        longva = LongVA_Cached("small", filled, nframe=NFRAME * 2)
        longva.letter_logits(message(videos, "long"), LETTERS)
        assert longva.statistics.misses == 1

    def test_a_mistyped_store_is_refused_and_not_made(self, tmp_path):
        with pytest.raises(EvaluationError, match="no folder"):
            cached(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_a_video_that_cannot_be_decoded_leaves_the_tower_as_it_was(self, filled, tmp_path, videos):
        longva = cached(filled)
        (tmp_path / "broken.mp4").write_bytes(b"nothing")
        with pytest.raises(Exception, match=r"broken\.mp4"):
            longva.letter_logits([{"type": "video", "value": tmp_path / "broken.mp4"}], LETTERS)
        assert "forward" not in vars(longva.model.get_vision_tower())


class TestWhatParityTestsMustNotice:
    """Each fault of the earlier scripts, made on purpose: the comparison above fails on it, or an error names it."""

    def test_a_bypassed_cache(self, plain, filled, videos, monkeypatch):
        longva = cached(filled, on_miss="raise")
        monkeypatch.setattr(
            "consumers.evaluation.cached_tower.Request.answer", lambda self, *a: self._cache.original(*a)
        )
        with pytest.raises(EvaluationError, match="never called"):
            longva.letter_logits(message(videos, "long"), LETTERS)

    def test_an_extra_dimension(self, filled, videos, monkeypatch):
        answer = FeatureTower.answer
        monkeypatch.setattr(FeatureTower, "answer", lambda *args: answer(*args)[None])
        with pytest.raises(RuntimeError, match="split_sizes"):
            cached(filled).letter_logits(message(videos, "long"), LETTERS)

    def test_another_videos_features(self, plain, filled, videos):
        question = [{**message(videos, "long")[0], "video_id": "long@0.5-1.5"}, message(videos, "long")[1]]
        found = cached(filled).letter_logits(question, LETTERS)
        assert not torch.equal(found, plain.letter_logits(question, LETTERS))
        with pytest.raises(EchoDifference, match=r"long@0.5-1.5: .* values differ"):
            cached(filled, echo=1.0).letter_logits(question, LETTERS)

    def test_another_models_features(self, filled, videos):
        longva = cached(filled)
        with torch.no_grad():
            next(longva.model.get_vision_tower().parameters()).add_(1)
        tower = CachedVisionTower(longva.model, filled, dataset=DATASET, nframe=NFRAME)
        with pytest.raises(RecipeMismatch, match="weights_sha256"), tower.request("long"):
            pass

    def test_features_of_another_dtype(self, filled, videos):
        with pytest.raises(RecipeMismatch, match="dtype"):
            cached(filled, dtype="float32").letter_logits(message(videos, "long"), LETTERS)

    def test_features_of_another_dtype_without_a_recipe(self, filled, videos, tmp_path):
        strip_recipes(filled, tmp_path / "old")
        with pytest.raises(FeatureUnfit, match="cast"):
            cached(tmp_path / "old", dtype="float32").letter_logits(message(videos, "long"), LETTERS)
        longva = cached(tmp_path / "old", dtype="float32", cast=True)
        longva.letter_logits(message(videos, "long"), LETTERS)
        assert longva.statistics.hit_rate == 1.0

    def test_int8_that_is_no_named_cast(self, filled, videos, tmp_path):
        with FeatureStore(filled) as store, FeatureStore(tmp_path / "half") as half:
            for key in list(store.keys()):
                recipe = {**store.record_of(key).recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)}
                half.put(key, store.get(key), recipe=recipe)
        with pytest.raises((InexactFeature, RecipeMismatch)):
            cached(tmp_path / "half").letter_logits(message(videos, "long"), LETTERS)
        longva = cached(tmp_path / "half", cast=True)
        longva.letter_logits(message(videos, "long"), LETTERS)
        assert longva.statistics.hits == 1

    def test_features_of_other_frames(self, videos, tmp_path):
        build(tmp_path / "store", videos, sampling="longva")
        with pytest.raises(RecipeMismatch, match="sampling"):
            cached(tmp_path / "store").letter_logits(message(videos, "short"), LETTERS)

    def test_stale_features_may_be_a_miss(self, plain, videos, tmp_path):
        build(tmp_path / "store", videos, sampling="longva")
        longva = cached(tmp_path / "store", on_stale="miss")
        question = message(videos, "short")
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
        assert longva.statistics.misses == 1


def strip_recipes(root, target, *, dataset=DATASET):
    """Copy features as the earlier scripts wrote them: under their name of the data set, and without a record."""
    with FeatureStore(root) as store:
        for key in list(store.keys()):
            path = target / store.path_of(replace(key, dataset=dataset)).relative_to(store.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(store.get(key), path)


@pytest.mark.parametrize("dataset", [DATASET, "Video-MME_128frame"])
def test_files_of_the_earlier_scripts_are_read(plain, filled, videos, tmp_path, dataset):
    strip_recipes(filled, tmp_path / "old", dataset=dataset)
    longva = cached(tmp_path / "old", on_miss="raise")
    question = message(videos, "long")
    assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
    assert longva.statistics.hit_rate == 1.0


class TestEcho:
    def test_hits_are_recomputed_and_equal(self, filled, videos, capsys):
        longva = cached(filled, echo=1.0)
        for video_id in videos:
            longva.letter_logits(message(videos, video_id), LETTERS)
        assert (longva.statistics.hits, longva.statistics.echoes, longva.statistics.echo_differences) == (3, 3, 0)
        longva.close()
        assert "Echo checks: 3, with differences: 0\n" in capsys.readouterr().out

    def test_differences_are_counted_where_they_are_no_errors(self, filled, videos):
        longva = cached(filled, echo=1.0, on_difference="count")
        question = [{**message(videos, "long")[0], "video_id": "long@0.5-1.5"}, {"type": "text", "value": "?"}]
        longva.letter_logits(question, LETTERS)
        assert longva.statistics.echo_differences == 1

    def test_which_hits_are_chosen_depends_on_their_names_alone(self, filled, videos):
        chosen = []
        for _ in range(2):
            longva = cached(filled, echo=0.25)
            found = []
            for video_id in videos:
                before = longva.statistics.echoes
                longva.letter_logits(message(videos, video_id), LETTERS)
                found.append(longva.statistics.echoes - before)
            chosen.append(found)
        assert chosen[0] == chosen[1]
        assert 0 < sum(chosen[0]) < 3


def test_threads_do_not_get_each_others_features(plain, filled, videos):
    longva = cached(filled, on_miss="raise")
    wanted = {video_id: plain.letter_logits(message(videos, video_id), LETTERS) for video_id in videos}
    together, found = threading.Barrier(2), {}

    def ask(video_id):
        together.wait()
        found[video_id] = [longva.letter_logits(message(videos, video_id), LETTERS) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(video_id,)) for video_id in ("long", "short")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for video_id, answers in found.items():
        assert all(torch.equal(answer, wanted[video_id]) for answer in answers)
    assert (len(found), longva.statistics.hits) == (2, 40)


def test_the_old_statistics_block_is_printed_once(filled, videos, capsys):
    longva = cached(filled)
    longva.letter_logits(message(videos, "long"), LETTERS)
    longva.close()
    del longva
    rule = "=" * 60
    assert capsys.readouterr().out == (
        f"{rule}\nVision Cache Statistics\n{rule}\nCache hits: 1\nCache misses: 0\nHit rate: 100.0%\n{rule}\n"
    )


def test_the_signature_is_the_contracts(filled):
    assert cached(filled).model_signature == model_signature("small", -2)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint folder in LongVA's layout, in float32, and a package `longva` that loads it in float16."""
    model = SmallLongVA()
    # Weights are published in another dtype than that in which they run.
    tower = SmallLongVA(dtype=torch.float32).get_vision_tower().vision_tower
    folder = tmp_path / "LongVA-7B"
    folder.mkdir()
    prefix = "model.vision_tower.vision_tower.vision_model."
    tensors = {prefix + name.removeprefix("vision_model."): value for name, value in tower.state_dict().items()}
    save_file({**tensors, "lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    tokenizer = small_models.byte_tokenizer()
    processor = CLIPImageProcessorPil(
        **{k: v for k, v in small_models.CLIP_PROCESSOR.items() if k != "image_processor_type"}
    )

    def load_pretrained_model(path, base, name, **options):
        assert (path, base, name) == (str(folder), None, "llava_qwen")
        return tokenizer, model, processor, 2048

    def tokenizer_image_token(prompt, tokenizer, index, return_tensors):
        before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in prompt.split("<image>"))
        return torch.tensor([*before, index, *after])

    modules = {
        "longva": {},
        "longva.constants": {"IMAGE_TOKEN_INDEX": IMAGE_TOKEN_INDEX},
        "longva.mm_utils": {"process_images": None, "tokenizer_image_token": tokenizer_image_token},
        "longva.model": {},
        "longva.model.builder": {"load_pretrained_model": load_pretrained_model},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return folder


def test_a_checkpoint_runs_through_the_package_longva(checkpoint, plain, filled, videos):
    """The package is a stand-in with the published interface; tower weights are compared with those on disk."""
    longva = cached(filled, str(checkpoint), on_miss="raise")
    uncached = LongVA_Cached(str(checkpoint), None, nframe=NFRAME)
    for video_id in videos:
        question = message(videos, video_id)
        found = longva.letter_logits(question, LETTERS)
        assert torch.equal(found, uncached.letter_logits(question, LETTERS))
        assert torch.equal(found, plain.letter_logits(question, LETTERS))
    assert longva.generate_inner(question) == plain.generate_inner(question)
    assert longva.statistics.hit_rate == 1.0


def test_an_image_of_a_checkpoints_question_that_is_cut_short_is_named(checkpoint, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    longva = LongVA_Cached(str(checkpoint), None, nframe=NFRAME)
    with pytest.raises(MediaError, match=r"cut\.png: not a readable image"):
        longva.generate_inner([{"type": "image", "value": str(path)}, {"type": "text", "value": "What?"}])


def test_a_checkpoint_with_another_tower_is_refused_the_features(checkpoint, filled, videos):
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("patch_embedding.weight"))
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(RecipeMismatch, match="weights_sha256"):
        cached(filled, str(checkpoint)).letter_logits(message(videos, "long"), LETTERS)


def test_a_checkpoint_that_is_not_there_is_named(checkpoint, filled, monkeypatch):
    def missing(*_, **__):
        raise OSError("nowhere is not a local folder")

    monkeypatch.setattr(sys.modules["longva.model.builder"], "load_pretrained_model", missing)
    with pytest.raises(EvaluationError, match="nowhere cannot be loaded"):
        LongVA_Cached("nowhere", filled)


def test_a_real_checkpoint_says_that_the_package_longva_is_needed(filled):
    with pytest.raises(EvaluationError, match="package longva"):
        LongVA_Cached("lmms-lab/LongVA-7B", filled)
