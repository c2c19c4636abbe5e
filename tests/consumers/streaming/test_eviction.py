"""Endless streams keep their first tokens and the most recent chunks, in flat memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from consumers.streaming import ContextTooLong, EvictionConfig, VideoStreamingInference
from consumers.streaming.eviction import ChunkLedger
from consumers.streaming.video_sequence import VideoSequence
from tests.consumers.streaming.streams import QUESTION, append_chunks, bits, question_logits, same, video

FRAMES = video(40)


def filled(config: EvictionConfig, lengths: list[int], *, context_tokens: int = 1000) -> tuple[ChunkLedger, list[int]]:
    """A ledger after chunks of these lengths, and the lengths held after each."""
    ledger, held, total = ChunkLedger(config, context_tokens), [], 0
    for length in lengths:
        spans = ledger.spans_to_keep(length)
        if spans is not None:
            total = sum(end - start for start, end in spans)
            ledger.drop(length)
        ledger.append(length)
        total += length
        held.append(total)
    return ledger, held


def test_whole_chunks_leave_oldest_first_and_only_when_needed():
    ledger, held = filled(EvictionConfig(100), [10, *[30] * 5])
    assert held == [10, 40, 70, 100, 100, 100]
    assert ledger.stats() == {
        "max_cache_tokens": 100,
        "chunks_kept": 4,
        "evictions": 2,
        "chunks_evicted": 2,
        "tokens_evicted": 60,
        "peak_tokens": 100,
    }


def test_sinks_are_the_chunks_that_begin_within_them():
    ledger, _ = filled(EvictionConfig(100, sink_size=11), [10, 20, 30, 30])
    assert ledger.spans_to_keep(30) == [(0, 30), (60, 90)]


def test_sinks_are_rounded_up_only_where_the_next_chunk_fits_beside_them():
    ledger, held = filled(EvictionConfig(100, sink_size=70, window_size=30), [38, *[22] * 6])
    assert held == [38, 60, 82, 82, 82, 82, 82]
    assert ledger._lengths[:2] == [38, 22]
    with pytest.raises(ContextTooLong, match="the chunk and the sinks before it"):
        ledger.spans_to_keep(41)  # what is whole within the sinks is not given up


def test_the_first_chunk_has_to_fit_too():
    with pytest.raises(ContextTooLong, match="110 tokens, 100 fit"):
        filled(EvictionConfig(100), [110])


@pytest.mark.parametrize("config", [EvictionConfig(200, eviction_interval=8), EvictionConfig(100_000)])
def test_what_the_context_cannot_hold_is_evicted_whatever_limit_and_interval_say(config):
    _, held = filled(config, [38, *[22] * 40], context_tokens=300)
    assert 200 < max(held) <= 300


@pytest.mark.parametrize("config", [EvictionConfig(200, eviction_interval=8), EvictionConfig(100_000)])
def test_a_stream_that_evicts_does_not_end_at_the_context(eager, config):
    engine = VideoStreamingInference(*eager, max_context_tokens=300, eviction_config=config)
    append_chunks(engine, FRAMES * 4, 4)
    assert engine.get_cache_info()["total_frames"] == 160
    assert engine.get_cache_info()["eviction_stats"]["peak_tokens"] <= 300


def test_a_smaller_window_drops_more_at_once_and_less_often():
    many = filled(EvictionConfig(100), [10] * 60)[0].stats()
    few = filled(EvictionConfig(100, window_size=30), [10] * 60)[0].stats()
    assert few["evictions"] < many["evictions"] / 4
    assert filled(EvictionConfig(100, window_size=30), [10] * 11)[1][-1] == 40  # the sink, two chunks and the new one


def test_an_interval_looks_at_every_nth_chunk_only():
    config = EvictionConfig(50, eviction_interval=4)
    _, held = filled(config, [10] * 40)
    assert 50 < max(held) <= 50 + 3 * 10


@pytest.mark.parametrize("wrong", [float("nan"), "300", None, 300.5])
def test_sizes_that_are_no_whole_numbers_are_refused(wrong):
    for name in ("max_cache_tokens", "sink_size", "window_size", "eviction_interval"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            EvictionConfig(**{"max_cache_tokens": 1000, name: wrong})


@pytest.mark.parametrize("wrong", [(0,), (10, -1), (10, 0, -1), (10, 0, 0, 0), (10, 6, 6)])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sizes|together"):
        EvictionConfig(*wrong)


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
def test_what_is_kept_is_bitwise_what_it_was_and_positions_go_on(eager, wrapping):
    engine = VideoStreamingInference(*eager, eviction_config=EvictionConfig(120), wrapping=wrapping)
    unbounded = VideoStreamingInference(*eager, wrapping=wrapping)
    longest = 0
    for start in range(0, len(FRAMES), 4):
        before, held = bits(engine), engine.sequence.manager.get_seq_length()
        for stream in (engine, unbounded):
            stream.append_video_chunk(FRAMES[start : start + 4])
        info = engine.get_cache_info()
        longest = max(longest, info["cache_seq_length"])
        assert info["stream_state"] == unbounded.get_cache_info()["stream_state"]
        if before:
            sink = engine.sequence.ledger._lengths[0]
            new = engine.sequence.ledger._lengths[-1]
            kept = info["cache_seq_length"] - sink - new
            for now, old in zip(bits(engine), before, strict=True):
                assert torch.equal(now[:, :, :sink], old[:, :, :sink])
                assert torch.equal(now[:, :, sink : sink + kept], old[:, :, held - kept :])
    assert longest <= 120
    assert unbounded.get_cache_info()["cache_seq_length"] > 120
    stats = engine.get_cache_info()["eviction_stats"]
    assert stats["peak_tokens"] == longest
    gone = unbounded.get_cache_info()["cache_seq_length"] - engine.get_cache_info()["cache_seq_length"]
    assert stats["tokens_evicted"] == gone > 0
    assert unbounded.get_cache_info()["eviction_stats"] is None
    assert torch.isfinite(question_logits(engine)).all()
    engine.ask(QUESTION, max_new_tokens=3)
    assert engine.get_cache_info()["eviction_stats"] == stats


def test_nothing_changes_while_everything_fits(eager):
    roomy = VideoStreamingInference(*eager, eviction_config=EvictionConfig(4000), wrapping="continuous")
    plain = VideoStreamingInference(*eager, wrapping="continuous")
    for engine in (roomy, plain):
        append_chunks(engine, FRAMES, 4)
    assert torch.equal(question_logits(roomy), question_logits(plain))
    assert roomy.get_cache_info()["eviction_stats"]["evictions"] == 0


def test_kept_answers_are_evicted_like_chunks(eager):
    engine = VideoStreamingInference(*eager, eviction_config=EvictionConfig(260))
    for start in range(0, 32, 4):
        engine.append_video_chunk(FRAMES[start : start + 4])
        engine.ask(QUESTION, max_new_tokens=4, update_state=True)
    ledger = engine.sequence.ledger
    assert sum(ledger._lengths) == engine.sequence.manager.get_seq_length()
    assert ledger.stats()["chunks_evicted"] > 4


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
def test_a_frame_that_waited_and_the_answer_kept_with_it_are_evicted_and_only_the_text_before_them_stays(
    eager, wrapping
):
    first, waited = (
        VideoStreamingInference(*eager, eviction_config=EvictionConfig(300), wrapping=wrapping) for _ in range(2)
    )
    first.append_video_chunk(FRAMES[:2])
    waited.append_video_chunk(FRAMES[:1])
    waited.ask(QUESTION, max_new_tokens=250, min_new_tokens=250, update_state=True)
    assert waited.sequence.ledger._lengths[:2] == first.sequence.ledger._lengths
    before = bits(waited)
    append_chunks(waited, FRAMES, 4)
    lengths = waited.sequence.ledger._lengths
    sink = first.sequence.ledger._lengths[0]
    assert lengths[0] == sink
    assert max(lengths[1:]) < 30
    assert all(torch.equal(now[:, :, :sink], old[:, :, :sink]) for now, old in zip(bits(waited), before, strict=True))
    assert sum(lengths) == waited.sequence.manager.get_seq_length() <= 300


@pytest.mark.parametrize("answers", [1, 2, 3])
@pytest.mark.parametrize("interval", [1, 2, 3, 4])
def test_with_kept_answers_the_limit_is_passed_by_n_minus_1_chunks_at_most_when_frames_come(eager, interval, answers):
    config = EvictionConfig(200, eviction_interval=interval)
    engine = VideoStreamingInference(*eager, eviction_config=config)
    for start in range(0, len(FRAMES), 2):
        engine.append_video_chunk(FRAMES[start : start + 2])
        lengths = engine.sequence.ledger._lengths
        assert sum(lengths[: len(lengths) - interval + 1]) <= 200
        for _ in range(answers):
            engine.ask(QUESTION, max_new_tokens=2, min_new_tokens=2, update_state=True)
    assert engine.get_cache_info()["eviction_stats"]["evictions"] > 2


def test_a_chunk_that_cannot_fit_is_refused_and_the_stream_goes_on(eager):
    engine = VideoStreamingInference(*eager, eviction_config=EvictionConfig(120))
    append_chunks(engine, FRAMES[:12], 4)
    before = bits(engine)
    with pytest.raises(ContextTooLong, match="the chunk and the sinks before it"):
        engine.append_video_chunk(FRAMES)
    assert all(torch.equal(a, b) for a, b in zip(bits(engine), before, strict=True))
    engine.append_video_chunk(FRAMES[12:16])


def evicts_next(loaded, wrapping: str) -> VideoStreamingInference:
    """A stream whose next chunk of four frames evicts."""
    engine = VideoStreamingInference(*loaded, eviction_config=EvictionConfig(100), wrapping=wrapping)
    while engine.sequence.ledger.spans_to_keep(22 if wrapping == "turns" else 12) is None:
        engine.append_video_chunk(FRAMES[:4])
    return engine


def assert_goes_on_as_it_was(engine, undisturbed) -> None:
    for _ in range(2):
        assert same(bits(engine), bits(undisturbed))
        assert engine.get_cache_info() == undisturbed.get_cache_info()
        assert sum(engine.sequence.ledger._lengths) == engine.sequence.manager.get_seq_length()
        for stream in (engine, undisturbed):
            stream.append_video_chunk(FRAMES[4:8])


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_running_out_of_memory_amid_an_eviction_evicts_nothing(eager, monkeypatch, wrapping, fails_at):
    engine, undisturbed = (evicts_next(eager, wrapping) for _ in range(2))
    calls = []

    def cat(*args, **options):
        calls.append(args)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError("simulated")
        return torch.cat(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr("consumers.streaming.kv_cache.torch", SimpleNamespace(cat=cat))
        with pytest.raises(torch.OutOfMemoryError):
            engine.append_video_chunk(FRAMES[4:8])
    assert_goes_on_as_it_was(engine, undisturbed)


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
@pytest.mark.parametrize("amid", ["drop", "append"])
def test_an_interrupt_does_not_part_the_cache_from_what_is_known_of_it(eager, monkeypatch, wrapping, amid):
    engine, undisturbed = (evicts_next(eager, wrapping) for _ in range(2))
    if amid == "append":  # what was evicted for the chunk stays so
        for stream in (engine, undisturbed):
            stream.sequence._make_room(22 if wrapping == "turns" else 12)
    real = getattr(ChunkLedger, amid)

    def interrupted(*args, **options):
        real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ChunkLedger, amid, interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.append_video_chunk(FRAMES[4:8])
    assert_goes_on_as_it_was(engine, undisturbed)


def test_times_that_are_refused_evict_nothing(eager):
    engine, undisturbed = (evicts_next(eager, "continuous") for _ in range(2))
    with pytest.raises(ValueError, match="fps"):
        engine.append_video_chunk(FRAMES[4:8], fps=1e-18)
    assert_goes_on_as_it_was(engine, undisturbed)


class _InstantRunner:
    """Appends random keys and values without a model, so that ten thousand chunks take a second."""

    longest_context, device = 1 << 30, torch.device("cpu")
    model = type("Model", (), {"dtype": torch.float32})

    def ids(self, text):
        return torch.zeros(min(len(text), 4), dtype=torch.long)

    def embed(self, ids):
        return torch.zeros(len(ids), 2)

    def extend(self, sequence, embeddings, positions, *, next_position, keep=1):
        from transformers import DynamicCache

        count = embeddings.shape[1]
        assert positions.shape == (3, count)
        sequence.cache = sequence.cache or DynamicCache()
        sequence.cache.update(torch.zeros(1, 1, count, 2), torch.zeros(1, 1, count, 2), 0)
        sequence.next_position, sequence.tokens_seen = next_position, sequence.tokens_seen + count
        return torch.zeros(1, 1, 1)


@pytest.mark.parametrize("wrapping", ["turns", "continuous"])
def test_memory_is_flat_over_ten_thousand_chunks(wrapping):
    sequence = VideoSequence(
        _InstantRunner(),
        wrapping=wrapping,
        text_after_video="spatial",
        eviction=EvictionConfig(120, window_size=90),
    )
    most = 0
    for chunk in range(10_000):
        sequence.append_video(torch.zeros(4, 2), [2 * chunk, 2 * chunk + 1], rows=1, columns=2)
        held = {tensor.untyped_storage().nbytes() for pair in sequence.manager.tensors() for tensor in pair}
        most = max(most, *held)
        assert len(sequence.ledger._lengths) <= 120 // 4
    assert most <= 120 * 2 * 4
    stats = sequence.ledger.stats()
    assert stats["peak_tokens"] <= 120
    assert stats["chunks_evicted"] > 9_900
    assert sequence.manager.tokens_seen == stats["tokens_evicted"] + sequence.manager.get_seq_length()
