"""Int8 halves a feature at a loss that is bounded, measured and told, and nobody gets it who asks for exact values."""

from __future__ import annotations

import logging
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_store import FeatureStore, InexactFeature, RecipeMismatch, StepKey, VideoKey, describe, int8
from cache_store.codec import decode
from cache_store.migration import migrate
from cache_store.migration_sources import moves_of_aliases
from tests.cache_store.conftest import local_url
from tests.documents import blocks

KEY = VideoKey("videos", "a", 8, "0" * 8)
EXACT = {"encoder": {"weights": "a"}}
RECIPE = {**EXACT, "storage": dict(int8.STORAGE)}
FEATURES = torch.randn(8, 36, 80, generator=torch.Generator().manual_seed(3)) * 4
DOCUMENT = Path(__file__).parents[2] / "docs" / "int8.md"
DTYPES = [getattr(torch, name) for name in int8.DTYPES]


def entry(features, **fields):
    dtype = str(features.dtype).removeprefix("torch.")
    return {"vision_features": features, "video_id": "a", "dtype": dtype, "shape": list(features.shape), **fields}


def kept(features):
    """What a file holds of features: values, scales, loss."""
    found = int8.for_storage(entry(features), RECIPE)
    return found["vision_features"], found["vision_features_scale"], int8.loss_of(found)


def given_back(features):
    values, scales, _ = kept(features)
    return (values.double() * scales.double()).to(features.dtype)


@pytest.fixture
def video(store):
    store.put(KEY, entry(FEATURES.half()), recipe=RECIPE, provenance={"decoder": "none"})
    return store


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 36, 80), (1, 1, 1), (3, 7, 13), (2, 5), (2, 3, 40_001), (0, 36, 8), (2, 3, 0)])
def test_no_value_is_further_off_than_half_a_scale(dtype, shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, scales, loss = kept(features)
    assert values.dtype is torch.int8
    assert values.shape == features.shape
    assert scales.dtype is torch.float32
    assert scales.shape == (*features.shape[:-1], 1)
    if not features.numel():
        assert loss == (1.0, 1.0, 0.0, 0.0)
        return
    assert values.abs().amax(-1).eq(127).all()
    errors = (values.double() * scales.double() - features.double()).abs()
    assert (errors <= scales.double() * (0.5 + 1e-5)).all()


def test_the_loss_is_that_of_what_is_read_token_by_token():
    features = FEATURES.half()
    features[2, 3] = 0
    exact, given = features.double(), given_back(features).double()
    cosines = torch.cosine_similarity(exact, given, dim=-1)
    cosines[2, 3] = 1
    loss = kept(features)[2]
    assert loss.worst_cosine == pytest.approx(cosines.min().item(), abs=1e-8)
    assert loss.mean_cosine == pytest.approx(cosines.mean().item(), abs=1e-8)
    assert loss.max_error == (exact - given).abs().max().item()
    assert loss.relative_error == pytest.approx(((exact - given).norm() / exact.norm()).item(), rel=1e-8)
    assert 0.9999 < loss.worst_cosine < loss.mean_cosine < 1
    assert 0.001 < loss.relative_error < 0.02


def test_a_token_of_zeros_comes_back_as_zeros_and_costs_nothing():
    values, scales, loss = kept(torch.zeros(2, 3, 5).half())
    assert not values.any()
    assert not scales.any()
    assert loss == (1.0, 1.0, 0.0, 0.0)
    assert not torch.signbit(given_back(-torch.zeros(1, 1, 4))).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", ["smallest above zero", "smallest normal", "largest"])
def test_the_ends_of_a_dtype_come_back_within_half_a_scale(dtype, largest):
    info = torch.finfo(dtype)
    ends = {"smallest above zero": info.smallest_normal * info.eps, "smallest normal": info.tiny, "largest": info.max}
    pattern = torch.tensor([1.0, -1.0, 0.5, 0.0, -0.25, 0.007], dtype=torch.float64)
    features = (pattern * ends[largest]).to(dtype).reshape(1, 1, 6)
    values, scales, _ = kept(features)
    given = given_back(features)
    assert given.isfinite().all()
    assert given.flatten()[:2].tolist() == pytest.approx(features.flatten()[:2].tolist(), rel=2e-5, abs=0)
    bound = scales.double() * (0.5 + 1e-5) + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * 0.5
    assert ((given.double() - features.double()).abs() <= bound + given.double().abs() * info.eps).all()
    out = torch.empty_like(features)
    int8.dequantise(values, scales, out)
    assert torch.equal(out, given)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_nothing_is_written(store, bad):
    features = FEATURES.half()
    features[7, 35, 79] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        store.put(KEY, entry(features), recipe=RECIPE)
    assert not store.contains(KEY)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1, 1, 8),
        {"features": torch.zeros(1, 1, 8)},
        entry(torch.zeros(2, 3, 4, dtype=torch.int32)),
        entry(torch.zeros(2, 3, 4, dtype=torch.float64)),
        entry(torch.zeros(4)),
    ],
)
def test_what_has_no_tokens_of_floats_is_refused(store, value):
    with pytest.raises(TypeError, match="int8"):
        store.put(KEY, value, recipe=RECIPE)


def test_a_storage_that_nobody_knows_is_refused(store):
    for storage in ({"dtype": "int4"}, "int8", {**int8.STORAGE, "block": 32}):
        with pytest.raises(ValueError, match="storage"):
            store.put(KEY, entry(FEATURES), recipe={"storage": storage})


def test_plain_torch_reads_values_scales_and_what_they_mean(video):
    raw = torch.load(video.path_of(KEY), weights_only=True)
    assert raw["dtype"] == "int8"
    assert raw["shape"] == [8, 36, 80]
    assert raw["quantisation"]["dtype"] == "float16"
    assert set(raw["quantisation"]) == {"scheme", "dtype", *int8.Loss._fields}
    by_hand = (raw["vision_features"] * raw["vision_features_scale"]).half()
    assert torch.equal(by_hand, video.get(KEY, recipe=RECIPE)["vision_features"])


def test_a_file_takes_half_the_space(video):
    exact = video.put(VideoKey("exact", "a", 8, "0" * 8), entry(FEATURES.half()))
    saved = exact.stat().st_size - video.path_of(KEY).stat().st_size
    assert 0 < FEATURES.half().nbytes - int8.payload_bytes(FEATURES.shape) - saved < 1500  # what says how to read it
    assert int8.payload_bytes((128, 576, 1024)) / (128 * 576 * 1024 * 2) < 0.502


def test_equal_features_give_equal_files_whatever_their_strides_and_threads(store):
    features = FEATURES.half()
    threads = torch.get_num_threads()
    files = []
    for number, same in enumerate([features, features.transpose(0, 2).contiguous().transpose(0, 2), features.clone()]):
        torch.set_num_threads(1 + number)
        files.append(store.put(KEY, entry(same), recipe=RECIPE).read_bytes())
    torch.set_num_threads(threads)
    assert files[0] == files[1] == files[2]


def test_a_reader_gets_the_towers_dtype_or_the_one_that_it_names(video):
    default = video.get(KEY)
    assert default["vision_features"].dtype is torch.float16
    assert default["dtype"] == "int8"
    assert "vision_features_scale" not in default
    assert int8.loss_of(default) == describe(video.path_of(KEY)).loss
    raw = decode(video.path_of(KEY))
    product = raw["vision_features"].double() * raw["vision_features_scale"].double()
    for dtype in DTYPES:
        expected = product.to(torch.float32).to(dtype)
        assert torch.equal(video.get(KEY, dtype=dtype)["vision_features"], expected)
        out = torch.empty(8, 36, 80, dtype=dtype)
        assert video.get(KEY, out=out)["vision_features"] is out
        assert torch.equal(out, expected)
    assert torch.equal(video.get(KEY, mmap=True)["vision_features"], default["vision_features"])


def test_a_dtype_or_buffer_that_does_not_fit_is_refused(video):
    exact = VideoKey("exact", "a", 8, "0" * 8)
    video.put(exact, entry(FEATURES.half()))
    assert video.get(exact, dtype=torch.float16) is not None
    step = StepKey("episode", 0)
    video.put(step, FEATURES[:1, :1].half())
    video.get(step)  # so that the fast way knows it
    for key in (exact, step):
        with pytest.raises(ValueError, match="exact float16"):
            video.get(key, dtype=torch.float32)
    for options in (
        {"dtype": torch.float64},
        {"out": torch.empty(8, 36, 80, dtype=torch.float64)},
        {"out": torch.empty(8, 36, 81).half()},
        {"out": torch.empty(8, 36, 80).half(), "dtype": torch.float32},
    ):
        with pytest.raises(ValueError, match=r"out is|dtype"):
            video.get(KEY, **options)
    assert video.contains(KEY)


@pytest.mark.parametrize("frames", [[0], [7, 0, 3, 3], [-1, -8], slice(2, 5), slice(None, None, -2), []])
def test_chosen_frames_are_the_rows_of_the_whole_and_only_their_bytes_are_read(video, frames, monkeypatch):
    whole = video.get(KEY)["vision_features"]
    rows = list(range(8))[frames] if isinstance(frames, slice) else [row % 8 for row in frames]
    read, preadv = [], os.preadv

    def counted(fd, buffers, offset):
        read.append(sum(map(len, buffers)))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    assert torch.equal(video.get(KEY, frames=frames)["vision_features"], whole[rows])
    assert sum(read) == len(rows) * (36 * 80 + 36 * 4)
    out = torch.empty(len(rows), 36, 80)
    video.get(KEY, frames=frames, out=out)
    assert torch.equal(out.half(), whole[rows])


def test_large_features_are_read_in_pieces_and_each_piece_counts(store, monkeypatch):
    monkeypatch.setattr("cache_store.feature_file._INT8_PIECE_BYTES", 3 * 36 * 80)
    path = store.put(KEY, entry(FEATURES.half()), recipe=RECIPE)
    raw = decode(path)
    expected = (raw["vision_features"] * raw["vision_features_scale"]).half()
    assert torch.equal(store.get(KEY, check="always")["vision_features"], expected)
    for rows in (slice(1, 8), [2, 3, 4, 5, 6, 0]):
        assert torch.equal(store.get(KEY, frames=rows)["vision_features"], expected[rows])


def test_a_flipped_byte_of_values_or_scales_is_a_counted_miss(open_store):
    store = open_store()
    path = store.put(KEY, entry(FEATURES.half()), recipe=RECIPE)
    sound, raw = path.read_bytes(), decode(path)
    for part in ("vision_features", "vision_features_scale"):
        damaged = bytearray(sound)
        damaged[sound.index(raw[part].numpy().tobytes()) + 17] ^= 1
        path.write_bytes(damaged)
        assert store.get(KEY, check="always") is None, part
    assert store.stats().damaged == 2


def test_values_without_fitting_scales_are_damage_and_cannot_be_put(store):
    raw = int8.for_storage(entry(FEATURES.half()), RECIPE)
    for scales in (None, raw["vision_features_scale"][:4], raw["vision_features_scale"].half()):
        broken = {**raw, "vision_features_scale": scales}
        with pytest.raises(ValueError, match="does not fit"):
            store.put(KEY, broken)
        torch.save(broken, store.put(KEY, entry(FEATURES)))
        assert store.get(KEY) is None


def test_who_asks_for_exact_features_never_gets_them_from_int8(video):
    with pytest.raises(InexactFeature, match="kept as int8") as refused:
        video.get(KEY, exact=True)
    assert pickle.loads(pickle.dumps(refused.value)).loss == int8.loss_of(video.get(KEY))
    with pytest.raises(RecipeMismatch, match="storage"):
        video.get(KEY, recipe=EXACT)
    assert video.get(KEY, exact=True, on_stale="miss") is None
    assert video.get(KEY, recipe=EXACT, on_stale="miss") is None
    with pytest.raises(InexactFeature):
        video.get(KEY, recipe=EXACT, exact=True, on_stale="use")
    assert video.get(KEY, recipe=EXACT, on_stale="use")["dtype"] == "int8"
    with pytest.raises(InexactFeature):
        video.get(KEY, recipe=RECIPE, exact=True)
    assert not video.contains(KEY, recipe=EXACT)


@pytest.mark.parametrize("is_foreign", [False, True])
def test_an_int8_file_without_a_recipe_is_not_taken_for_any_recipe(store, is_foreign):
    raw = int8.for_storage(entry(FEATURES.half()), RECIPE)
    path = store.put(KEY, entry(FEATURES))
    store.delete(KEY)
    if is_foreign:
        strided = raw["vision_features"].transpose(1, 2).contiguous().transpose(1, 2)
        torch.save({**raw, "vision_features": strided}, path)  # strides: torch alone can read it
    else:
        torch.save(raw, path)
        assert not store.contains(KEY, recipe=EXACT)
    with pytest.raises(InexactFeature):
        store.get(KEY, recipe=EXACT)
    with pytest.raises(InexactFeature):
        store.get(KEY, exact=True)
    found = store.get(KEY)["vision_features"]
    assert torch.equal(found, store.get(KEY, recipe=RECIPE)["vision_features"])
    assert torch.equal(found, given_back(FEATURES.half()))
    assert torch.equal(store.get(KEY, frames=[3, 1], dtype=torch.float32)["vision_features"].half(), found[[3, 1]])


def test_int8_and_exact_features_of_one_video_lie_side_by_side(video):
    video.put(KEY, entry(FEATURES.half()), recipe=EXACT)
    assert torch.equal(video.get(KEY, recipe=EXACT, exact=True)["vision_features"], FEATURES.half())
    assert video.get(KEY, recipe=EXACT)["dtype"] == "float16"
    assert video.get(KEY, recipe=RECIPE)["dtype"] == "int8"


def test_what_was_read_from_int8_is_not_put_back_as_exact_or_quantised_twice(video):
    read, raw = video.get(KEY), decode(video.path_of(KEY))
    for value, recipe in ((read, EXACT), (raw, EXACT), (read, RECIPE)):
        with pytest.raises(ValueError, match="int8"):
            video.put(KEY, value, recipe=recipe)
    before = video.path_of(KEY).read_bytes()
    video.put(KEY, raw, recipe=RECIPE, provenance={"decoder": "none"})
    assert video.path_of(KEY).read_bytes() == before
    step = StepKey("episode", 0)
    video.put(step, read)
    for _ in range(2):
        video.get(step)
        with pytest.raises(InexactFeature):
            video.get(step, exact=True)


def test_int8_made_of_stored_exact_features_is_what_a_build_would_have_written(video, open_store):
    built = video.path_of(KEY, recipe=RECIPE).read_bytes()
    store = open_store("exact")
    path = store.put(KEY, entry(FEATURES.half()), recipe=EXACT, provenance={"decoder": "none"})
    record = describe(path).record
    recipe = {**record.recipe, int8.RECIPE_FIELD: dict(int8.STORAGE)}
    made = store.put(KEY, store.get(KEY, exact=True), recipe=recipe, provenance=record.provenance, is_second=True)
    assert made != path
    assert made.read_bytes() == built


def test_int8_under_an_alias_is_migrated_as_it_is(open_store):
    old, store = open_store("old"), open_store()
    key = VideoKey("Video-MME_128frame", "a", 8, "0" * 8)
    fields = {"nframe": 8, "dataset": key.dataset, "model_signature": key.model_signature}
    path = old.put(key, entry(FEATURES.half(), **fields), recipe=RECIPE)
    (moved,) = migrate(store, moves_of_aliases(old.root), recipe=None, dry_run=False)
    assert moved.outcome == "copied"
    before, after = decode(path), decode(store.root / moved.target)
    assert after["quantisation"] == before["quantisation"]
    for part in ("vision_features", "vision_features_scale"):
        assert torch.equal(before[part], after[part])
    assert store.get(replace(key, dataset="Video-MME"), recipe=RECIPE)["dtype"] == "int8"


def test_stats_add_up_what_was_lost_and_read_each_file_once(open_store, tmp_path, monkeypatch):
    store = open_store()
    features = [FEATURES.half(), FEATURES.half() * 3 + 1]
    for number, one in enumerate(features):
        store.put(VideoKey("videos", str(number), 8, "0" * 8), entry(one), recipe=RECIPE)
    store.put(VideoKey("exact", "a", 8, "0" * 8), entry(FEATURES.half()), recipe=EXACT)
    store.put(VideoKey("steps", "a", 8, "0" * 8), entry(FEATURES.half() + 5), recipe=RECIPE)
    one, other = (kept(feature)[2] for feature in features)
    read, loss_in = [], int8.loss_in
    monkeypatch.setattr(int8, "loss_in", lambda path: read.append(path) or loss_in(path))
    for _ in range(3):
        found = store.stats().datasets["videos"].int8
    assert len(set(read)) == len(read) == 3
    assert store.stats().datasets["exact"].int8 is None
    assert (found.entries, found.worst_cosine) == (2, min(one.worst_cosine, other.worst_cosine))
    assert found.mean_cosine == pytest.approx((one.mean_cosine + other.mean_cosine) / 2)
    assert found.max_error == max(one.max_error, other.max_error)
    assert found.worst_relative_error == max(one.relative_error, other.relative_error)
    assert found.mean_relative_error == pytest.approx((one.relative_error + other.relative_error) / 2)
    replaced = store.put(VideoKey("videos", "0", 8, "0" * 8), entry(features[1]), recipe=RECIPE)
    assert store.stats().datasets["videos"].int8.worst_cosine == other.worst_cosine
    raw = torch.load(replaced, weights_only=True)
    torch.save(raw, tmp_path / "plain.pt")  # whose pickle is written another way
    assert int8.loss_in(str(tmp_path / "plain.pt")) == other
    assert int8.loss_in(str(tmp_path / "gone.pt")) is None


def test_a_plain_reader_is_told_once_of_each_data_set(video, caplog):
    with caplog.at_level(logging.WARNING, logger="cache_store"):
        video.get(KEY, recipe=RECIPE)
        assert not caplog.messages
        for _ in range(3):
            video.get(KEY)
    assert len([message for message in caplog.messages if "kept as int8" in message]) == 1


def test_the_summary_of_the_scripts_says_int8(tmp_path):
    with FeatureStore(tmp_path) as store:
        store.put(KEY, entry(FEATURES.half()), recipe=RECIPE)
    assert '"dtype": "int8"' in (tmp_path / "cache_meta.json").read_text()


def test_pieces_are_small_however_large_the_feature(monkeypatch):
    seen, quantise = [], int8._quantise

    def watched(exact, values, scales):
        seen.append(exact.numel())
        return quantise(exact, values, scales)

    monkeypatch.setattr(int8, "_quantise", watched)
    features = torch.from_numpy(np.ones((40, 100, 64), np.float16))
    kept(features)
    assert max(seen) <= 1 << 15
    assert sum(seen) == features.numel()


def test_packed_int8_is_what_it_was_as_a_file(store):
    exact = {"weights": "b"}
    wanted = {**exact, "storage": {"dtype": "int8", "scale": "token"}}
    keys = [StepKey("e", number) for number in range(3)]
    for number, key in enumerate(keys):
        store.put(key, entry(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(number))), recipe=wanted)
    loose = [store.get(key, recipe=wanted)["vision_features"] for key in keys]
    told = store.stats().datasets["e"].int8
    store.pack()
    assert not list(store.root.glob("*.pt"))
    for _ in range(3):
        assert all(
            torch.equal(store.get(key, recipe=wanted)["vision_features"], was)
            for key, was in zip(keys, loose, strict=True)
        )
        assert torch.equal(store.get_batch(keys, recipe=wanted).features, torch.stack(loose))
    assert store.stats().datasets["e"].int8 == told
    with pytest.raises(InexactFeature):
        store.get(keys[0], exact=True)
    with pytest.raises(RecipeMismatch):
        store.get_batch(keys, recipe=exact)
    store.unpack()
    assert store.stats().datasets["e"].int8 == told


@pytest.mark.parametrize("kind", ["folder", "packed", "url"])
def test_the_documents_way_from_exact_features_may_be_gone_again(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path / "tier"))
    root = local_url(tmp_path / "store") if kind == "url" else str(tmp_path / "store")
    (code,) = (one for one in blocks(DOCUMENT, "python") if "is_second=True" in one)
    keys = [VideoKey("Video-MME", name, 8, "0" * 8) for name in "abc"]
    with FeatureStore(root) as store:
        for key in keys[:2]:
            store.put(key, entry(FEATURES.half()), recipe=EXACT)
        store.put(keys[2], entry(FEATURES.half()), recipe={"encoder": {"weights": "second"}})
        if kind == "packed":
            store.pack()
    for _ in range(2):
        exec(code.replace("/cache/longva", root), {})
    with FeatureStore(root) as store:
        assert store.stats().entries == 5
        assert [store.contains(key, recipe=RECIPE) for key in keys] == [True, True, False]
