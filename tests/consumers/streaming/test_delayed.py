"""Frames are encoded when a question needs them, once, and only what is new."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from cache_store import CacheStoreError, FeatureStore
from consumers.streaming import (
    DelayedBatchInferenceEngine,
    FrameSizeChanged,
    LastNFramesEngine,
    TimeRunsBackwards,
    VideoStreamingInference,
    WeightsChanged,
    load_streaming_model,
)
from consumers.streaming.pair_features import PairFeatures
from tests.adapters import SWITCHES, AdaptedLinear
from tests.consumers.streaming.streams import QUESTION, same, video

FRAMES = video(60)
FEW = {"max_new_tokens": 4, "do_sample": False}


def filled(loaded, count: int, **options) -> DelayedBatchInferenceEngine:
    engine = DelayedBatchInferenceEngine(*loaded, **options)
    add(engine, 0, count)
    return engine


def add(engine, start: int, end: int) -> None:
    for index in range(start, end):
        engine.add_frame(FRAMES[index], index / 2)


def cache_bits(engine) -> list[torch.Tensor]:
    return [tensor.clone() for pair in engine._sequence.manager.tensors() for tensor in pair]


def test_each_frame_is_told_what_became_of_it(eager):
    engine = DelayedBatchInferenceEngine(*eager)
    black, white = (np.full((56, 84, 3), value, np.uint8) for value in (0, 255))
    lines = [engine.add_frame(frame, i) for i, frame in enumerate([*[black] * 9, white, white])]
    assert lines[0] == "Frame #1 added to Stream Memory + Star Memory (first frame) | Star: 1, Stream: 1"
    assert lines[9] == "Frame #10 added to Stream Memory + Star Memory (scene change) | Star: 2, Stream: 10"
    assert lines[10] == "Frame #11 added to Stream Memory | Star: 2, Stream: 11"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_context_tokens": 0}, ValueError),
        ({"text_after_video": "none"}, ValueError),
        ({"feature_store": "path"}, TypeError),
    ],
)
def test_an_engine_that_could_never_work_is_refused_when_it_is_made(eager, options, error):
    (name,) = options
    with pytest.raises(error, match=name):
        DelayedBatchInferenceEngine(*eager, **options)


def test_without_frames_the_answer_is_an_error_message(eager):
    engine = DelayedBatchInferenceEngine(*eager)
    text, metrics = engine.ask(QUESTION)
    assert text == "Error: no frames"
    assert "frames_encoded" not in metrics
    assert list(engine.ask_stream(QUESTION)) == ["Error: no frames"]


def test_the_union_is_encoded_once_until_a_frame_comes(eager):
    engine = filled(eager, 50, star_memory_size=0)
    _, first = engine.ask(QUESTION, **FEW)
    assert (first["frames_encoded"], first["pairs_encoded"], first["visual_tokens"]) == (20, 10, 60)
    assert first["total_latency"] >= first["encoding_latency"] > 0
    held = cache_bits(engine)
    for _ in range(2):
        _, again = engine.ask(QUESTION, **FEW)
        assert not {"encoding_latency", "frames_encoded", "visual_tokens"} & set(again)
        assert {"total_latency", "generation_latency", "output_tokens"} <= set(again)
        assert list(engine.ask_stream(QUESTION, **FEW))
    assert same(cache_bits(engine), held)
    add(engine, 50, 60)
    _, third = engine.ask(QUESTION, **FEW)
    assert (third["frames_encoded"], third["pairs_encoded"], third["pairs_reused"]) == (20, 5, 5)


def test_a_window_that_moves_by_one_frame_pays_for_the_pairs_at_its_ends(eager):
    engine = filled(eager, 50, star_memory_size=0)
    engine.ask(QUESTION, **FEW)
    add(engine, 50, 51)
    _, metrics = engine.ask(QUESTION, **FEW)
    assert (metrics["frames_encoded"], metrics["pairs_encoded"], metrics["pairs_reused"]) == (20, 2, 9)
    assert metrics["visual_tokens"] == 11 * 6


def test_the_same_memory_gives_the_same_cache_however_it_came_about(eager):
    asked, fresh = (DelayedBatchInferenceEngine(*eager, star_memory_size=4, stream_window_size=6) for _ in range(2))
    for index in range(20):
        add(asked, index, index + 1)
        asked.ask(QUESTION, **FEW)
        add(fresh, index, index + 1)
    assert asked.ask(QUESTION, **FEW)[0] == fresh.ask(QUESTION, **FEW)[0]
    assert same(cache_bits(asked), cache_bits(fresh))


def test_the_union_is_the_video_of_its_pairs_at_their_true_times(eager):
    engine = filled(eager, 30, star_memory_size=3, stream_window_size=4)
    engine.ask(QUESTION, **FEW)
    union = [frame.index for frame in engine.memory.union()]
    assert union[-4:] == [26, 27, 28, 29]
    groups = {}
    for index in union:
        groups.setdefault(index // 2, []).append(index)
    assert any(len(group) == 1 for group in groups.values())  # a star frame alone
    pairs = [(group[0], group[-1]) for group in groups.values()]
    whole = VideoStreamingInference(*eager, wrapping="continuous", min_pixels=4 * 28 * 28, max_pixels=4 * 224 * 224)
    times = [group[0] / 2 for group in groups.values() for _ in range(2)]
    whole.append_video_chunk([FRAMES[index] for pair in pairs for index in pair], timestamps=times)
    tensors = [tensor for pair in whole.sequence.manager.tensors() for tensor in pair]
    for one, other in zip(cache_bits(engine), tensors, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)


def test_without_absolute_time_pairs_are_spread_evenly(eager):
    frames = [(0, 0.0), (1, 0.5), (2, 10.0), (3, 10.5), (4, 30.0), (5, 30.5)]
    engines = [DelayedBatchInferenceEngine(*eager, enable_absolute_time_encoding=on) for on in (True, False)]
    for engine in engines:
        for index, time_s in frames:
            engine.add_frame(FRAMES[index], time_s)
        engine.ask(QUESTION, **FEW)
    even = VideoStreamingInference(*eager, wrapping="continuous", max_pixels=4 * 224 * 224)
    even.append_video_chunk(FRAMES[:6], fps=6 / 30.5)
    wanted = [tensor for pair in even.sequence.manager.tensors() for tensor in pair]
    for one, other in zip(cache_bits(engines[1]), wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)
    assert not same(cache_bits(engines[0]), cache_bits(engines[1]))


def test_a_store_keeps_pairs_for_other_processes(eager, tmp_path, monkeypatch):
    with FeatureStore(tmp_path) as store:
        first = filled(eager, 20, feature_store=store)
        text, metrics = first.ask(QUESTION, **FEW)
        assert metrics["pairs_encoded"] == 10
        second = filled(eager, 20, feature_store=store)
        again, reused = second.ask(QUESTION, **FEW)
        assert (again, reused["pairs_encoded"], reused["pairs_reused"]) == (text, 0, 10)
        assert same(cache_bits(first), cache_bits(second))
        assert store.verify().problems == []
        assert len(list(store.entries())) == 10
        recipe = PairFeatures.recipe.func
        monkeypatch.setattr(PairFeatures, "recipe", property(lambda self: {**recipe(self), "weights_sha256": "other"}))
        other = filled(eager, 20, feature_store=store)
        assert other.ask(QUESTION, **FEW)[1]["pairs_encoded"] == 10


def test_a_store_keeps_pairs_of_towers_apart_that_differ_in_their_architecture_alone(tmp_path):
    with FeatureStore(tmp_path) as store:
        answers = []
        for blocks in ([0], [0, 1]):
            loaded = load_streaming_model("small", attention="eager")
            loaded[0].model.visual.config.fullatt_block_indexes = blocks
            engine = filled(loaded, 4, feature_store=store)
            answers.append(engine.ask(QUESTION, **FEW)[1]["pairs_encoded"])
        assert answers == [2, 2]


@pytest.mark.parametrize("is_reset", [True, False])
@pytest.mark.parametrize("is_stored", [True, False])
def test_weights_that_change_in_the_live_model_are_not_answered_with_features_of_the_old_ones(
    tmp_path, is_stored, is_reset
):
    with FeatureStore(tmp_path) as store:
        options = {"feature_store": store if is_stored else None}
        loaded = load_streaming_model("small", attention="eager")
        engine = filled(loaded, 8, **options)
        engine.ask(QUESTION, **FEW)
        tower = loaded[0].model.visual
        old = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
        tower.load_state_dict({name: tensor * 1.5 for name, tensor in old.items()})
        if is_reset:
            engine.reset()
            add(engine, 0, 8)
        add(engine, 8, 10)
        assert engine.ask(QUESTION, **FEW)[1]["pairs_reused"] == 0
        fresh = filled(loaded, 10)
        fresh.ask(QUESTION, **FEW)
        assert same(cache_bits(engine), cache_bits(fresh))
        tower.load_state_dict(old)
        again, fresh = filled(loaded, 10, **options), filled(loaded, 10)
        assert again.ask(QUESTION, **FEW)[1]["pairs_reused"] == (4 if is_stored else 0)
        fresh.ask(QUESTION, **FEW)
        assert same(cache_bits(again), cache_bits(fresh))


def test_after_a_reset_the_store_knows_weights_that_were_written_to_uncounted(tmp_path):
    with FeatureStore(tmp_path) as store:
        loaded = load_streaming_model("small", attention="eager")
        engine = filled(loaded, 8, feature_store=store)
        engine.ask(QUESTION, **FEW)
        weight = loaded[0].model.visual.patch_embed.proj.weight
        old = weight.detach().clone()
        for written, reused in ((old * 1.5, 0), (old, 4)):
            weight.data.copy_(written)
            engine.reset()
            add(engine, 0, 10)
            assert engine.ask(QUESTION, **FEW)[1]["pairs_reused"] == reused
            fresh = filled(loaded, 10)
            fresh.ask(QUESTION, **FEW)
            assert same(cache_bits(engine), cache_bits(fresh))


@pytest.mark.parametrize("switch", SWITCHES)
def test_features_of_one_adapter_are_not_answered_for_another(tmp_path, switch):
    model, processor = load_streaming_model("small", attention="eager")
    mlp = model.model.visual.blocks[0].mlp
    mlp.down_proj = AdaptedLinear(mlp.down_proj)
    with FeatureStore(tmp_path) as store:
        engine = filled((model, processor), 8, feature_store=store)
        engine.ask(QUESTION, **FEW)
        before = cache_bits(engine)
        again = filled((model, processor), 8, feature_store=store)
        assert again.ask(QUESTION, **FEW)[1]["pairs_reused"] == 4
        SWITCHES[switch](mlp.down_proj)
        assert engine.ask(QUESTION, **FEW)[1]["pairs_reused"] == 0
        fresh = filled((model, processor), 8)
        fresh.ask(QUESTION, **FEW)
        assert same(cache_bits(engine), cache_bits(fresh))
        assert not same(cache_bits(engine), before)


def test_an_answer_that_two_sets_of_weights_made_is_refused():
    model, processor = load_streaming_model("small", attention="eager")
    engine = filled((model, processor), 8)
    pieces = engine.ask_stream(QUESTION, **FEW)
    next(pieces)
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})
    with pytest.raises(WeightsChanged, match="ask again"):
        list(pieces)
    engine.ask(QUESTION, **FEW)
    fresh = filled((model, processor), 8)
    fresh.ask(QUESTION, **FEW)
    assert same(cache_bits(engine), cache_bits(fresh))


def test_a_language_model_that_has_changed_prefills_again_before_it_answers():
    model, processor = load_streaming_model("small", attention="eager")
    engine = filled((model, processor), 8)
    engine.ask(QUESTION, **FEW)
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert engine.ask(QUESTION, **FEW)[1]["pairs_reused"] == 4
    fresh = filled((model, processor), 8)
    fresh.ask(QUESTION, **FEW)
    assert same(cache_bits(engine), cache_bits(fresh))
    assert "frames_encoded" not in engine.ask(QUESTION, **FEW)[1]


def test_a_tower_of_another_dtype_or_kernel_encodes_its_own_pairs():
    model, processor = load_streaming_model("small", attention="eager")
    engine = filled((model, processor), 8)
    engine.ask(QUESTION, **FEW)
    for change in (lambda: model.set_attn_implementation("sdpa"), model.bfloat16):
        change()
        engine._sequence = None
        assert engine.ask(QUESTION, **FEW)[1]["pairs_reused"] == 0


def test_a_store_that_fails_costs_a_warning_not_the_answer(eager, tmp_path, caplog, monkeypatch):
    def fails(*_, **__):
        raise CacheStoreError("the disk is gone")

    wanted = filled(eager, 6).ask(QUESTION, **FEW)[0]
    with FeatureStore(tmp_path, limit_bytes=1) as store:
        text, metrics = filled(eager, 6, feature_store=store).ask(QUESTION, **FEW)
    assert (text, metrics["pairs_encoded"]) == (wanted, 3)
    assert "not kept" in caplog.text
    with FeatureStore(tmp_path) as store:
        monkeypatch.setattr(store, "get", fails)
        text, metrics = filled(eager, 6, feature_store=store).ask(QUESTION, **FEW)
    assert (text, metrics["pairs_encoded"]) == (wanted, 3)
    assert "the disk is gone" in caplog.text


def test_features_that_are_kept_are_of_the_towers_dtype_under_autocast_too(eager, tmp_path):
    wanted = filled(eager, 6)
    wanted.ask(QUESTION, **FEW)
    with FeatureStore(tmp_path) as store:
        first, second = (filled(eager, 6, feature_store=store) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16):
            first.ask(QUESTION, **FEW)
        assert second.ask(QUESTION, **FEW)[1]["pairs_reused"] == 3
    assert same(cache_bits(second), cache_bits(wanted))


def test_the_pixel_bounds_reach_the_processor(eager):
    large = video(4, height=168, width=168)
    tokens = {}
    for bound in (4 * 28 * 28, 36 * 28 * 28):
        engine = DelayedBatchInferenceEngine(*eager, max_pixels=bound)
        for index, frame in enumerate(large):
            engine.add_frame(frame, index)
        tokens[bound] = engine.ask(QUESTION, **FEW)[1]["visual_tokens"]
    assert tokens == {4 * 28 * 28: 2 * 4, 36 * 28 * 28: 2 * 36}


def test_sampling_bounds_how_many_frames_are_encoded(eager):
    assert filled(eager, 50, max_sampled_frames=8).ask(QUESTION, **FEW)[1]["frames_encoded"] == 8
    slow = filled(eager, 40, star_memory_size=0, target_fps=0.5)
    assert slow.ask(QUESTION, **FEW)[1]["frames_encoded"] == 5  # the window's ten seconds
    add(slow, 40, 44)
    assert slow.ask(QUESTION, **FEW)[1]["pairs_encoded"] <= 2


def test_what_does_not_fit_is_refused_and_the_stream_goes_on(eager):
    engine = filled(eager, 4)
    before, _ = engine.ask(QUESTION, **FEW)
    with pytest.raises(FrameSizeChanged):
        engine.add_frame(video(1, height=84)[0], 9)
    with pytest.raises(TimeRunsBackwards):
        engine.add_frame(FRAMES[4], 0.25)
    with pytest.raises(ValueError, match="finite number of seconds"):
        engine.add_frame(FRAMES[4], 1e19)
    for wrong in ({"temperature": float("inf")}, {"repetition_penalty": float("inf")}):
        with pytest.raises(ValueError, match="must lie within"):
            engine.ask(QUESTION, **wrong)
    with pytest.raises(ValueError, match="must not hold"):
        engine.ask("<|im_end|>")
    assert engine.ask(QUESTION, **FEW)[0] == before
    answer = engine.ask_stream(QUESTION, max_new_tokens=50)
    next(answer)
    answer.close()
    assert engine.ask(QUESTION, **FEW)[0] == before
    engine.reset()
    assert engine.ask(QUESTION)[0] == "Error: no frames"
    engine.add_frame(video(1, height=84)[0], 0)
    assert engine.ask(QUESTION, **FEW)[1]["frames_encoded"] == 1


def test_a_first_frame_that_no_question_could_encode_is_not_kept(eager):
    engine = filled(eager, 0)
    with pytest.raises(ValueError, match="1000x2 pixels: one edge is over 200 times the other"):
        engine.add_frame(np.zeros((2, 1000, 3), np.uint8), 0)
    assert engine.get_statistics()["total_frames_added"] == 0
    engine.add_frame(FRAMES[0], 0)
    assert engine.ask(QUESTION, **FEW)[1]["frames_encoded"] == 1


def test_frames_may_come_while_two_ask(eager):
    engine, failures = filled(eager, 10), []

    def ask():
        try:
            for _ in range(5):
                engine.ask(QUESTION, **FEW)
        except Exception as exc:  # noqa: BLE001 - handed to the test's thread
            failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    add(engine, 10, 40)
    for thread in threads:
        thread.join()
    assert failures == []
    assert engine.ask(QUESTION, **FEW)[0] == filled(eager, 40).ask(QUESTION, **FEW)[0]


def test_the_penalty_makes_answers_repeat_less(eager):
    engine = filled(eager, 8)
    texts = [
        engine.ask(QUESTION, max_new_tokens=40, do_sample=False, repetition_penalty=penalty)[0] for penalty in (1, 5.0)
    ]
    assert texts[0] != texts[1]


def test_the_baseline_sees_the_last_frames_and_nothing_else(eager):
    long, short = LastNFramesEngine(*eager, num_frames=4), LastNFramesEngine(*eager, num_frames=4)
    add(long, 0, 51)
    add(short, 47, 51)
    assert long.ask(QUESTION, **FEW)[0] == short.ask(QUESTION, **FEW)[0]
    assert same(cache_bits(long), cache_bits(short))
    assert long.get_statistics()["unique_frames"] == 4
    whole = VideoStreamingInference(*eager, wrapping="continuous", max_pixels=4 * 224 * 224)
    whole.append_video_chunk(FRAMES[47:51], fps=2.0)
    tensors = [tensor for pair in whole.sequence.manager.tensors() for tensor in pair]
    for one, other in zip(cache_bits(long), tensors, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, None])
def test_the_baseline_refuses_a_number_of_frames_by_its_own_name(eager, wrong):
    with pytest.raises(ValueError, match=f"num_frames must be .*, got {wrong}"):
        LastNFramesEngine(*eager, num_frames=wrong)


def test_statistics_tell_of_memories_and_cache(eager):
    engine = filled(eager, 30, star_memory_size=0)
    assert engine.get_statistics()["cache_seq_length"] == 0
    engine.ask(QUESTION, **FEW)
    found = engine.get_statistics()
    assert found["compression_ratio"] == "1.50x"
    assert found["cache_memory_bytes"] == engine._sequence.manager.nbytes > 0
