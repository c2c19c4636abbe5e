"""Evaluation on features behind a URL: the same bits, few requests, and errors that name the URL."""

from __future__ import annotations

import time

import pytest
import torch

from cache_store import FeatureStore, RecipeMismatch, StoreFormatError
from cache_store.copying import copy
from consumers.evaluation import CachedEncoderOutputs, FeatureMissing, LongVA_Cached
from consumers.evaluation.comparison import compare
from pipeline.encoders import small_models
from pipeline.sources.choices import Choices
from pipeline.sources.samples import Question, VideoSample
from tests.cache_store.remote.s3_server import s3_bucket
from tests.consumers.evaluation.conftest import DATASET, NFRAME, message
from tests.consumers.evaluation.test_encoder_outputs import qwen_media

LETTERS = "ABCD"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """This machine: its copies lie in a folder of the test."""
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "here"))


@pytest.fixture
def memory(filled, tmp_path):
    return copied(filled, f"memory://{tmp_path.name}/longva")


@pytest.fixture
def s3(filled, monkeypatch):
    return copied(filled, f"{s3_bucket(monkeypatch)}/longva")


def copied(root, url):
    with FeatureStore(root) as source, FeatureStore(url) as target:
        assert {one.outcome for one in copy(source, target)} == {"copied"}
    for copy_here in target.root.glob("*/*.pt"):
        copy_here.unlink()  # as on a machine that has read nothing yet
    return url


def cached(url, **options):
    return LongVA_Cached("small", url, nframe=NFRAME, on_miss="raise", **options)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_the_bits_are_those_of_the_uncached_model_and_a_second_question_asks_nothing(request, kind, videos):
    longva, plain = cached(request.getfixturevalue(kind)), LongVA_Cached("small", None, nframe=NFRAME)
    for video_id in videos:
        question = message(videos, video_id)
        assert torch.equal(longva.letter_logits(question, LETTERS), plain.letter_logits(question, LETTERS))
    transfers = longva.cache.stored.store.transfers
    asked = transfers.requests
    assert transfers.downloads == len(videos)
    for video_id in videos:
        longva.letter_logits(message(videos, video_id, "And then?"), LETTERS)
    assert transfers.requests == asked
    assert longva.statistics.hit_rate == 1.0


def test_errors_name_the_url(memory, videos):
    elsewhere = [{**message(videos, "long")[0], "video_id": "elsewhere"}, {"type": "text", "value": "?"}]
    with pytest.raises(FeatureMissing, match=f"no feature in {memory}"):
        cached(memory).letter_logits(elsewhere, LETTERS)
    with pytest.raises(RecipeMismatch, match=f"{memory}/{DATASET}/"):
        cached(memory, dtype="float32").letter_logits(message(videos, "long"), LETTERS)


def test_a_bucket_that_is_not_there_is_an_error_of_its_own(s3):
    with pytest.raises(StoreFormatError, match="no bucket"):
        cached("s3://no-such-bucket/longva")


def test_what_encoders_give_is_kept_behind_a_url_for_another_machine(tmp_path, monkeypatch):
    model, url = small_models.qwen_with_head(), f"memory://{tmp_path.name}/qwen"
    options = {"dataset": "set", "nframe": 4, "model_signature": "x" * 8}
    kept = CachedEncoderOutputs(model, url, **options).encoded("video", qwen_media)
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "there"))
    found = CachedEncoderOutputs(model, url, on_miss="raise", **options).encoded("video", lambda: pytest.fail("live"))
    tokens = [one.inputs["mm_encoder_outputs"]["video"].pooler_output[0] for one in (kept, found)]
    assert torch.equal(*tokens)
    assert (kept.is_hit, found.is_hit) == (False, True)


def test_the_next_video_is_downloaded_while_a_question_is_answered(memory, videos):
    longva = cached(memory)
    questions = []
    for row, video_id in enumerate(["long", "long", "short", "long@0.5-1.5"]):
        path, cut = videos[video_id]
        sample = VideoSample(DATASET, video_id, path, path.name, cut.start_s, cut.end_s)
        choices = Choices(("a cat", "a dog"), 0)
        questions.append((row, Question("questions", None, str(row), "What?", None, sample, choices)))
    transfers = longva.cache.stored.store.transfers
    answers = compare(longva, questions, on_failure=repr)
    assert next(answers).problem is None
    end_s = time.monotonic() + 30
    while transfers.downloads < 2:
        assert time.monotonic() < end_s
        time.sleep(0.005)
    assert transfers.downloads == 2  # "long" and, asked about third, "short"
    assert all(answer.agrees and answer.is_hit for answer in answers)
    assert transfers.downloads == 3
