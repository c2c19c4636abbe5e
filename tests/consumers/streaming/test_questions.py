"""A question never disturbs the video, and odd input gives a clear error after which the stream goes on."""

from __future__ import annotations

import threading
from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image

from consumers.streaming import (
    ContextTooLong,
    EvictionConfig,
    FrameSizeChanged,
    NoFrames,
    NonFiniteLogits,
    QwenInferenceWrapper,
    StreamBusy,
    TimeRunsBackwards,
    UnsupportedCache,
    VideoStreamingInference,
    load_streaming_model,
)
from consumers.streaming.decoding import Answer
from consumers.streaming.qwen_runner import QwenRunner
from pipeline.errors import MediaError
from tests.consumers.streaming.streams import QUESTION, append_chunks, bits, question_logits, same, video

FRAMES = video(16)


@pytest.fixture(params=["turns", "continuous"])
def wrapping(request):
    return request.param


@pytest.fixture
def engine(eager, wrapping):
    engine = VideoStreamingInference(*eager, wrapping=wrapping)
    append_chunks(engine, FRAMES[:8], 4)
    return engine


def goes_on(engine, before) -> bool:
    """Whether every key and value is as before and another chunk still fits."""
    is_same = same(bits(engine), before)
    engine.append_video_chunk(FRAMES[8:12])
    return is_same


def test_after_any_questions_the_stream_is_bitwise_one_that_was_never_asked(engine, eager, wrapping):
    before, places = bits(engine), [keys.data_ptr() for keys, _ in engine.sequence.manager.tensors()]
    rope_deltas = eager[0].model.rope_deltas
    answers = set()
    for _ in range(3):
        answers.add(engine.ask(QUESTION, max_new_tokens=5)[0])
        answers.add(list(engine.ask_stream(QUESTION, max_new_tokens=5))[-1]["text"])
        assert engine.ask_choice(QUESTION, ["A", "B", "both", "none of them"])[0]
    assert len(answers) == 1
    assert same(bits(engine), before)
    assert [keys.data_ptr() for keys, _ in engine.sequence.manager.tensors()] == places
    assert eager[0].model.rope_deltas is rope_deltas
    engine.append_video_chunk(FRAMES[8:12])
    never_asked = VideoStreamingInference(*eager, wrapping=wrapping)
    append_chunks(never_asked, FRAMES[:12], 4)
    assert same(bits(engine), bits(never_asked))
    assert engine.get_cache_info() == never_asked.get_cache_info()


def test_several_streams_share_one_model(eager, wrapping):
    streams = [VideoStreamingInference(*eager, wrapping=wrapping) for _ in range(2)]
    videos = [FRAMES[:8], video(8, height=84, width=56, seed=1)]
    for start in (0, 4):
        for stream, frames in zip(streams, videos, strict=True):
            stream.append_video_chunk(frames[start : start + 4])
            stream.ask(QUESTION, max_new_tokens=3)
    for stream, frames in zip(streams, videos, strict=True):
        alone = VideoStreamingInference(*eager, wrapping=wrapping)
        append_chunks(alone, frames, 4)
        assert same(bits(stream), bits(alone))


def test_an_answer_is_the_one_that_transformers_generates(eager, engine, wrapping):
    """From a copy of the cache, by `generate` with explicit positions."""
    branch = engine._branch()
    ids = branch.question_ids(QUESTION)[None]
    cached = branch.manager.get_seq_length()
    positions = torch.arange(ids.shape[1])[None, None].expand(3, 1, -1) + branch.manager.next_position
    out = eager[0].generate(
        input_ids=ids,
        attention_mask=torch.ones(1, cached + ids.shape[1], dtype=torch.long),
        position_ids=positions,
        past_key_values=branch.manager.cache,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    wanted = engine.runner.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert engine.ask(QUESTION, max_new_tokens=12)[0] == wanted


def test_a_stream_of_tokens_adds_up_to_the_answer(engine):
    *tokens, final = engine.ask_stream(QUESTION, max_new_tokens=6)
    text, metrics = engine.ask(QUESTION, max_new_tokens=6)
    assert "".join(event["delta"] for event in tokens) == final["text"] == text
    assert [event["type"] for event in tokens] == ["token"] * len(tokens)
    assert final["type"] == "final"
    assert 0 < tokens[0]["ttft"] <= final["metrics"]["total_latency"]
    assert {"ttft", "total_latency"} <= set(metrics)


def test_whole_characters_come_out_of_tokens_that_hold_parts_of_them(engine, monkeypatch):
    ids = engine.runner.ids("é→ok").tolist()
    assert len(ids) == len("é→ok".encode())
    picks = iter(ids)
    monkeypatch.setattr("consumers.streaming.decoding.Answer._pick", lambda *_: next(picks))
    *events, _ = engine.ask_stream(QUESTION, max_new_tokens=len(ids))
    assert [event["delta"] for event in events] == ["é", "→", "o", "k"]


def test_a_kept_answer_is_what_one_prefill_of_question_and_answer_gives(engine, eager, monkeypatch):
    answers, close = [], Answer.close_turn
    monkeypatch.setattr(Answer, "close_turn", lambda self: (answers.append(self), close(self)))
    engine.ask(QUESTION, max_new_tokens=4, min_new_tokens=4, update_state=True)
    again = VideoStreamingInference(*eager, wrapping=engine._wrapping)
    append_chunks(again, FRAMES[:8], 4)
    manager, runner = again.sequence.manager, again.runner
    said = [again.sequence.question_ids(QUESTION), torch.tensor(answers[0].ids), runner.ids("<|im_end|>\n")]
    runner.extend_text(manager, torch.cat(said))
    for kept, wanted in zip(bits(engine), bits(again), strict=True):
        assert torch.allclose(kept, wanted, rtol=0, atol=1e-5)
    assert engine.sequence.manager.next_position == manager.next_position
    # The next chunk begins another turn, in a continuous stream another video at time zero.
    engine.append_video_chunk(FRAMES[8:12])
    opening = len(runner.ids("<|im_start|>user\n<|vision_start|>"))
    closing = len(runner.ids("<|vision_end|><|im_end|>\n"))
    grown = engine.sequence.manager.get_seq_length() - manager.get_seq_length()
    assert grown == opening + 12 + (closing if engine._wrapping == "turns" else 0)
    assert engine._clock.frames == {"turns": 0, "continuous": 4}[engine._wrapping]
    assert torch.isfinite(question_logits(engine)).all()


def test_a_kept_answer_is_seen_by_the_next_question(eager, wrapping):
    def stream(question):
        engine = VideoStreamingInference(*eager, wrapping=wrapping)
        append_chunks(engine, FRAMES[:8], 4)
        if question:
            engine.ask(question, max_new_tokens=4, update_state=True)
        return question_logits(engine)[-1]

    never, one, other = stream(""), stream("Who?"), stream("Where?")
    assert not torch.equal(never, one)
    assert not torch.equal(one, other)


def test_a_cancelled_answer_leaves_no_trace(engine):
    before = bits(engine)
    for update_state in (False, True):
        answer = engine.ask_stream(QUESTION, max_new_tokens=50, update_state=update_state)
        next(answer)
        answer.close()
        assert same(bits(engine), before)
    assert engine.ask(QUESTION, max_new_tokens=3)[0] is not None
    assert goes_on(engine, before)


def test_frames_may_come_while_an_answer_is_made_unless_it_will_be_kept(engine):
    whole = engine.ask(QUESTION, max_new_tokens=6, min_new_tokens=6)[0]
    answer = engine.ask_stream(QUESTION, max_new_tokens=6, min_new_tokens=6)
    events = [next(answer)]
    engine.append_video_chunk(FRAMES[8:12])
    assert [*events, *answer][-1]["text"] == whole

    kept = engine.ask_stream(QUESTION, max_new_tokens=6, update_state=True)
    next(kept)
    before = bits(engine)
    for change in (
        lambda: engine.append_video_chunk(FRAMES[12:16]),
        lambda: engine.ask(QUESTION, update_state=True),
        engine.reset,
    ):
        with pytest.raises(StreamBusy, match="update_state"):
            change()
    assert same(bits(engine), before)
    assert engine.ask(QUESTION, max_new_tokens=2)[0] is not None  # looking is allowed
    *_, final = kept
    assert final["type"] == "final"
    engine.append_video_chunk(FRAMES[12:16])


def test_two_askers_at_once_get_what_each_alone_gets(engine):
    questions = ["Who is there?", "Where does it happen?"]
    alone = [engine.ask(question, max_new_tokens=12)[0] for question in questions]
    before, found, gate = bits(engine), {}, threading.Barrier(2)

    def ask(question):
        gate.wait()
        found[question] = engine.ask(question, max_new_tokens=12)[0]

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in questions] == alone
    assert same(bits(engine), before)


def test_choices_may_come_as_anything_that_yields_texts(engine):
    wanted = engine.ask_choice(QUESTION, ["A", "both"])
    for choices in (iter(["A", "both"]), np.array(["A", "both"]), {"A": 1, "both": 2}):
        best, result = engine.ask_choice(QUESTION, choices)
        assert (best, result["scores"]) == (wanted[0], wanted[1]["scores"])
        assert {type(choice) for choice in result["scores"]} == {str}


def test_choices_in_one_batch_score_as_one_by_one_and_as_the_logits_say(engine):
    choices = ["A", "B", "yes", "not at all"]
    best, result = engine.ask_choice(QUESTION, choices)
    assert best == max(choices, key=result["scores"].get)
    for choice in choices:
        alone = engine.ask_choice(QUESTION, [choice])[1]["scores"][choice]
        assert result["scores"][choice] == pytest.approx(alone, abs=1e-5)
        branch = engine._branch()
        asked, said = branch.question_ids(QUESTION), engine.runner.ids(choice)
        logits = engine.runner.extend_text(branch.manager, torch.cat([asked, said]), keep=0)[0]
        chances = logits.double().log_softmax(-1)[len(asked) - 1 : -1].gather(1, said[:, None])
        assert result["scores"][choice] == pytest.approx(float(chances.sum()), abs=1e-5)


@pytest.mark.parametrize(
    "choices",
    [
        [],
        ["A", ""],
        ["A", "A"],
        ["A", "<|im_end|>"],
        "Yes",
        [5, 6],
        ["A", "\udfff"],
        None,
        5,
        iter([]),
        np.zeros((2, 2)),
    ],
)
def test_choices_that_are_none_are_refused(engine, choices):
    before = bits(engine)
    with pytest.raises(ValueError, match="choice"):
        engine.ask_choice(QUESTION, choices)
    assert goes_on(engine, before)


@pytest.mark.parametrize(
    ("append", "error", "says"),
    [
        (lambda e: e.append_video_chunk([]), ValueError, "at least one frame"),
        (
            lambda e: e.append_video_chunk(video(2, height=84)),
            FrameSizeChanged,
            "84x84 pixels, this stream's are 56x84",
        ),
        (lambda e: e.append_video_chunk([FRAMES[0], video(1, width=56)[0]]), FrameSizeChanged, "56x56"),
        (lambda e: e.append_video_chunk([np.zeros((56, 84), np.uint8)]), ValueError, "uint8"),
        (lambda e: e.append_video_chunk([Image.new("I;16", (84, 56))]), ValueError, "8 bits .* I;16"),
        (lambda e: e.append_frame(Image.new("F", (84, 56)), as_video=True), ValueError, "8 bits .* F"),
        (lambda e: e.append_video_chunk([torch.zeros(56, 84, 3, requires_grad=True)]), ValueError, "uint8"),
        (lambda e: e.append_video_chunk([torch.zeros(56, 84, 3, dtype=torch.bfloat16)]), ValueError, "uint8"),
        (lambda e: e.append_video_chunk(["x.png"]), ValueError, "uint8"),
        (lambda e: e.append_video_chunk(FRAMES[:2], fps=0), ValueError, "finite number above 0"),
        (lambda e: e.append_video_chunk(FRAMES[:2], fps=float("inf")), ValueError, "finite number above 0"),
        (lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[1.0]), ValueError, "2 frames came with 1 timestamps"),
        (lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[2.0, 1.5]), TimeRunsBackwards, "1.5 s came after"),
        (lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[1, float("nan")]), ValueError, "finite"),
        (lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[1, "later"]), ValueError, "finite .* got 'later'"),
        (lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[0, 1e19]), ValueError, r"at most 1e\+11"),
        (lambda e: e.append_video_chunk(FRAMES[:1], timestamps=[-1e300]), ValueError, "finite number of seconds"),
        (lambda e: e.append_video_chunk(FRAMES[:1], timestamps=[10**400]), ValueError, "finite number of seconds"),
        (
            lambda e: e.append_video_chunk(FRAMES[:2], timestamps=[Decimal(0), Decimal(1)]),
            ValueError,
            "finite number of",
        ),
        (lambda e: e.append_video_chunk(FRAMES[:2], fps="2"), ValueError, "fps must be a number, got '2'"),
        (lambda e: e.append_video_chunk(FRAMES[:2], fps=None), ValueError, "fps must be a number, got None"),
        (lambda e: e.append_frame(FRAMES[0], text_content="<|video_pad|>"), ValueError, "."),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_the_stream_goes_on(engine, append, error, says):
    before = bits(engine)
    with pytest.raises(error, match=says):
        append(engine)
    assert goes_on(engine, before)


def test_an_image_whose_file_is_cut_short_is_named_and_the_stream_goes_on(engine, tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    before = bits(engine)
    with pytest.raises(MediaError, match=r"cut\.png: not a readable image"):
        engine.append_video_chunk([Image.open(path)])
    assert goes_on(engine, before)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_context_tokens": 0}, "max_context_tokens must be at least 1"),
        ({"max_context_tokens": 99.5}, "max_context_tokens must be a whole number, got 99.5"),
        ({"max_pixels": "many"}, "max_pixels must be a number, got 'many'"),
        ({"system_prompt": None}, "system_prompt must be text, got None"),
        ({"system_prompt": "Be kind.<|im_end|>"}, r"system_prompt must not hold <\|im_end\|>"),
        ({"device": "cuda:7"}, "device is cuda:7, and the model is on cpu"),
    ],
)
def test_an_engine_that_could_never_work_is_refused_when_it_is_made(eager, options, says):
    with pytest.raises(ValueError, match=says):
        VideoStreamingInference(*eager, **options)


def test_a_continuous_stream_has_one_rate_or_timestamps(eager):
    engine = VideoStreamingInference(*eager, wrapping="continuous")
    engine.append_video_chunk(FRAMES[:2], fps=2)
    for wrong in ({"fps": 4}, {"timestamps": [1.0, 1.5]}):
        with pytest.raises(ValueError, match="timestamps"):
            engine.append_video_chunk(FRAMES[2:4], **wrong)
        with pytest.raises(ValueError, match="timestamps"):  # also of a frame that would only wait
            engine.append_video_chunk(FRAMES[2:3], **wrong)
    engine.append_video_chunk(FRAMES[2:4], fps=2)
    with pytest.raises(ValueError, match="one video"):
        engine.append_frame(FRAMES[4])


@pytest.mark.parametrize("count", [1, 4])
def test_a_rate_that_leads_out_of_all_time_is_refused(eager, wrapping, count):
    engine = VideoStreamingInference(*eager, wrapping=wrapping)
    with pytest.raises(ValueError, match=r"fps 1e-18 .* 1e\+11 s"):
        engine.append_video_chunk(FRAMES[:count], fps=1e-18)
    assert engine.get_cache_info()["total_frames"] == 0
    engine.append_video_chunk(FRAMES[:count], fps=1 / (365 * 86400))  # a frame a year
    assert engine.ask(QUESTION, max_new_tokens=2)[0]


def test_temperatures_at_their_bounds_work(engine):
    greedy = engine.ask(QUESTION, max_new_tokens=4)[0]
    assert engine.ask(QUESTION, max_new_tokens=4, do_sample=True, temperature=1e-15)[0] == greedy
    assert engine.ask(QUESTION, max_new_tokens=4, do_sample=True, temperature=1e15)[0]


def test_a_frame_that_waits_and_its_partner_come_at_one_rate(eager, wrapping):
    engine, twin = (VideoStreamingInference(*eager, wrapping=wrapping) for _ in range(2))
    for stream in (engine, twin):
        stream.append_video_chunk(FRAMES[:1], fps=0.25)
    for frames in (FRAMES[1:2], FRAMES[1:6]):
        with pytest.raises(ValueError, match=r"waits .* 0\.25 frames per second, .* 8\.0"):
            engine.append_video_chunk(frames, fps=8.0)
    for stream in (engine, twin):
        stream.append_video_chunk(FRAMES[1:4], fps=0.25)
    assert same(bits(engine), bits(twin))
    assert torch.equal(question_logits(engine), question_logits(twin))


def test_time_may_not_run_backwards_from_chunk_to_chunk(eager, wrapping):
    engine = VideoStreamingInference(*eager, wrapping=wrapping)
    engine.append_video_chunk(FRAMES[:2], timestamps=[5.0, 6.0])
    with pytest.raises(TimeRunsBackwards):
        engine.append_video_chunk(FRAMES[2:4], timestamps=[5.5, 7.0])
    engine.append_video_chunk(FRAMES[2:4], timestamps=[6.0, 6.0])  # standing still is not running backwards


def test_a_question_before_the_first_frame_is_refused(eager, wrapping):
    engine = VideoStreamingInference(*eager, wrapping=wrapping)
    for ask in (lambda: engine.ask(QUESTION), lambda: engine.ask_choice(QUESTION, ["A"])):
        with pytest.raises(NoFrames, match="append frames"):
            ask()
    engine.append_video_chunk(FRAMES[:2])
    engine.ask(QUESTION, max_new_tokens=1)


def test_a_question_longer_than_the_context_is_refused(eager, wrapping):
    engine = VideoStreamingInference(*eager, wrapping=wrapping, max_context_tokens=300)
    engine.append_video_chunk(FRAMES[:4])
    before = bits(engine)
    for ask in (
        lambda: engine.ask("x" * 300, max_new_tokens=1),
        lambda: engine.ask(QUESTION, max_new_tokens=290),
        lambda: engine.ask_choice(QUESTION, ["x" * 290]),
    ):
        with pytest.raises(ContextTooLong, match="300 fit"):
            ask()
    assert same(bits(engine), before)
    engine.ask(QUESTION, max_new_tokens=3)
    with pytest.raises(ContextTooLong, match="the stream with this chunk"):
        append_chunks(engine, FRAMES * 10, 4)
    with pytest.raises(ContextTooLong):  # full is full
        engine.ask("x" * 30)
    engine.reset()
    engine.append_video_chunk(FRAMES[:4])
    engine.ask(QUESTION, max_new_tokens=3)


def test_an_answer_that_is_kept_fits_whole_into_the_context(eager, wrapping):
    engine = VideoStreamingInference(*eager, wrapping=wrapping, max_context_tokens=150)
    engine.append_video_chunk(FRAMES[:2])
    branch = engine._branch()
    left = 150 - branch.manager.get_seq_length() - len(branch.question_ids(QUESTION))
    before = bits(engine)
    with pytest.raises(ContextTooLong, match="150 fit"):
        engine.ask(QUESTION, max_new_tokens=left, min_new_tokens=left, update_state=True)
    assert same(bits(engine), before)
    engine.ask(QUESTION, max_new_tokens=left, min_new_tokens=left)  # one that is not kept needs no end of its turn
    kept = left - len(engine.runner.ids("<|im_end|>\n"))
    engine.ask(QUESTION, max_new_tokens=kept, min_new_tokens=kept, update_state=True)
    assert engine.get_cache_info()["cache_seq_length"] == 150


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"temperature": float("inf"), "do_sample": True},
        {"temperature": 1e-40, "do_sample": True},
        {"temperature": "hot"},
        {"top_p": None},
        {"max_new_tokens": None},
        {"max_new_tokens": 2.5, "min_new_tokens": 2},
        {"min_new_tokens": 1.0},
    ],
)
def test_options_out_of_range_or_of_another_kind_are_refused(engine, wrong):
    before, (name, *_) = bits(engine), wrong
    for ask in (engine.ask, engine.ask_stream):
        with pytest.raises(ValueError, match=f"{name}.* must|must.*{name}"):
            ask(QUESTION, update_state=True, **wrong)
    assert goes_on(engine, before)


def test_numbers_of_numpy_and_torch_are_numbers(engine, eager):
    engine.append_video_chunk(FRAMES[:2], fps=np.float32(2))
    wanted = engine.ask(QUESTION, max_new_tokens=3)[0]
    for three in (np.int64(3), torch.tensor(3)):
        assert engine.ask(QUESTION, max_new_tokens=three, temperature=np.float32(0.5))[0] == wanted
    timed = VideoStreamingInference(*eager)
    for times in (torch.tensor([0, 0.5]), np.array([1, 1.5], np.float32)):
        timed.append_video_chunk(FRAMES[:2], timestamps=times)


@pytest.mark.parametrize(
    ("question", "said"), [("<|vision_start|>", "must not hold"), (None, "be text"), ("half \ud83d", "be text")]
)
def test_what_is_no_question_is_refused(engine, question, said):
    before = bits(engine)
    with pytest.raises(ValueError, match=said):
        engine.ask(question)
    assert goes_on(engine, before)


@pytest.mark.parametrize("bounds", [{"max_pixels": 0}, {"min_pixels": 0}, {"max_pixels": 1}, {"min_pixels": 10**9}])
def test_pixel_bounds_that_no_frame_can_be_within_are_refused(eager, bounds):
    with pytest.raises(ValueError, match="pixels"):
        VideoStreamingInference(*eager, **bounds)


def test_running_out_of_memory_in_a_chunk_leaves_the_stream_as_it_was(engine, eager, monkeypatch):
    before, info = bits(engine), engine.get_cache_info()
    layer = eager[0].model.language_model.layers[1]

    def fails(*_, **__):
        raise MemoryError("simulated")

    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", fails)  # the first layer's cache has grown by then, and the second's
        with pytest.raises(MemoryError):
            engine.append_video_chunk(FRAMES[8:12])
    assert same(bits(engine), before)
    assert engine.get_cache_info() == info
    assert goes_on(engine, before)


def test_a_question_that_runs_out_of_memory_leaves_no_trace(engine, monkeypatch):
    before, extend = bits(engine), QwenRunner.extend
    for calls_before in (0, 2):
        for ask in (
            lambda: engine.ask(QUESTION, max_new_tokens=5, min_new_tokens=5),
            lambda: engine.ask(QUESTION, max_new_tokens=5, min_new_tokens=5, update_state=True),
            lambda: engine.ask_choice(QUESTION, ["A"]) and engine.ask_choice(QUESTION, ["both", "none"]),
        ):
            left = [calls_before]

            def fails(runner, *args, left=left, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise torch.OutOfMemoryError("simulated")
                return extend(runner, *args, **options)

            with monkeypatch.context() as patched:
                patched.setattr(QwenRunner, "extend", fails)
                with pytest.raises(torch.OutOfMemoryError):
                    ask()
            assert same(bits(engine), before)
    assert goes_on(engine, before)


def test_a_frame_that_waits_is_seen_by_questions_and_not_in_the_cache(eager, wrapping):
    engine, without = (VideoStreamingInference(*eager, wrapping=wrapping) for _ in range(2))
    engine.append_video_chunk(FRAMES[:3])
    without.append_video_chunk(FRAMES[:2])
    assert same(bits(engine), bits(without))
    assert engine.get_cache_info()["total_frames"] == 3
    assert not torch.equal(question_logits(engine)[-1], question_logits(without)[-1])
    engine.append_video_chunk(FRAMES[3:4])
    without.append_video_chunk(FRAMES[2:4])
    assert same(bits(engine), bits(without))


def test_resetting_begins_another_stream(engine, eager, wrapping):
    engine.reset()
    info = engine.get_cache_info()
    assert (info["chunks_encoded"], info["total_frames"], info["cache_seq_length"]) == (0, 0, 0)
    assert info["cache_memory_gb"] == 0
    assert info["stream_state"] == {"last_cache_position": -1, "rope_deltas": 0}
    frames = video(4, height=84)
    engine.append_video_chunk(frames)
    fresh = VideoStreamingInference(*eager, wrapping=wrapping)
    fresh.append_video_chunk(frames)
    assert same(bits(engine), bits(fresh))


def test_sampling_draws_from_the_nucleus(engine):
    torch.manual_seed(0)
    drawn = {engine.ask(QUESTION, 4, do_sample=True, temperature=5.0, top_p=1.0)[0] for _ in range(8)}
    assert len(drawn) > 1
    greedy = engine.ask(QUESTION, 4)[0]
    assert {engine.ask(QUESTION, 4, do_sample=True, top_p=1e-6)[0] for _ in range(3)} == {greedy}


@pytest.fixture
def overflows(engine, eager, monkeypatch):
    """Makes logits of some ids, or of all, one value, as float16 does where it overflows."""

    def overflow(value: float, ids=slice(None)) -> None:
        real = eager[0].forward

        def forward(*args, **options):
            out = real(*args, **options)
            out.logits[..., ids] = value
            return out

        monkeypatch.setattr(eager[0], "forward", forward)

    return overflow


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ids", [slice(None), slice(7, 8)])
def test_logits_that_decide_nothing_are_no_answer(engine, overflows, value, ids, monkeypatch):
    before = bits(engine)
    overflows(value, ids)
    for ask in (
        lambda: engine.ask(QUESTION, max_new_tokens=4),
        lambda: engine.ask(QUESTION, max_new_tokens=4, do_sample=True),
        lambda: engine.ask(QUESTION, max_new_tokens=4, update_state=True),
        lambda: list(engine.ask_stream(QUESTION, max_new_tokens=4)),
        lambda: engine.ask_choice(QUESTION, ["a", "b"]),
        lambda: engine.ask_choice(QUESTION, ["both", "none"]),
    ):
        with pytest.raises(NonFiniteLogits, match=r"float32.*bfloat16"):
            ask()
    monkeypatch.undo()
    assert goes_on(engine, before)
    assert engine.ask(QUESTION, max_new_tokens=4, update_state=True)[0]


def test_what_is_ruled_out_by_an_infinite_logit_is_only_not_chosen(engine, overflows):
    chosen = int(question_logits(engine)[-1].argmax())
    overflows(-float("inf"), [chosen])
    for do_sample in (False, True):
        assert engine.ask(QUESTION, max_new_tokens=4, do_sample=do_sample)[0]
    word = engine.runner.tokenizer.decode([chosen])
    best, result = engine.ask_choice(QUESTION, [word, "none"])
    assert (best, result["scores"][word]) == ("none", -float("inf"))


def test_a_choice_is_not_judged_by_what_comes_after_it(engine, eager, monkeypatch):
    wanted = engine.ask_choice(QUESTION, ["a", "none"])[1]["scores"]
    real = eager[0].forward

    def forward(*args, **options):
        out = real(*args, **options)
        if out.logits.shape[0] == 2:
            out.logits[0] = float("nan")  # of "a", which has one token
        return out

    monkeypatch.setattr(eager[0], "forward", forward)
    assert engine.ask_choice(QUESTION, ["a", "none"])[1]["scores"] == wanted


def test_a_list_or_an_image_as_video_is_a_chunk(eager, wrapping):
    lists, chunks = (VideoStreamingInference(*eager, wrapping=wrapping) for _ in range(2))
    lists.append_frame(FRAMES[:4], fps=3.0)
    chunks.append_video_chunk(FRAMES[:4], fps=3.0)
    for frame in FRAMES[4:6]:
        lists.append_frame(frame, as_video=True, fps=3.0)
    chunks.append_video_chunk(FRAMES[4:6], fps=3.0)
    assert same(bits(lists), bits(chunks))
    assert lists.get_cache_info() == chunks.get_cache_info()


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK"])
def test_images_of_eight_bits_become_rgb(eager, mode):
    image = Image.fromarray(FRAMES[0]).convert(mode)
    images, arrays = (VideoStreamingInference(*eager) for _ in range(2))
    images.append_video_chunk([image, image])
    arrays.append_video_chunk([np.asarray(image.convert("RGB"))] * 2)
    assert same(bits(images), bits(arrays))


def test_a_chunk_with_text_is_whole_at_once_and_the_text_is_seen(eager):
    silent, spoken, even = (VideoStreamingInference(*eager) for _ in range(3))
    silent.append_frame(FRAMES[:4])
    spoken.append_frame(FRAMES[:3], text_content="Watch the ball.")
    even.append_frame([*FRAMES[:3], FRAMES[2]], text_content="Watch the ball.")
    assert same(bits(spoken), bits(even))
    assert not torch.equal(question_logits(spoken)[-1], question_logits(silent)[-1])
    continuous = VideoStreamingInference(*eager, wrapping="continuous")
    with pytest.raises(ValueError, match="text_content has no place"):
        continuous.append_frame(FRAMES[:4], text_content="Watch the ball.")


def test_a_frame_that_waits_gets_its_turn_before_a_still_image(eager):
    waiting, padded = VideoStreamingInference(*eager), VideoStreamingInference(*eager, odd="pad")
    for engine in (waiting, padded):
        engine.append_video_chunk(FRAMES[:1])
        engine.append_frame(FRAMES[1])
    assert same(bits(waiting), bits(padded))
    assert waiting.get_cache_info() == padded.get_cache_info()


@pytest.mark.parametrize("eviction", [None, EvictionConfig(75)])
def test_a_still_image_that_is_refused_leaves_the_waiting_frame_waiting(eager, eviction):
    tight, twin = (VideoStreamingInference(*eager, max_context_tokens=80, eviction_config=eviction) for _ in range(2))
    for engine in (tight, twin):
        engine.append_video_chunk(FRAMES[:3])
    before, info = bits(tight), tight.get_cache_info()
    with pytest.raises(ContextTooLong):
        tight.append_frame(FRAMES[3], "x" * 30)
    assert same(bits(tight), before)
    assert tight.get_cache_info() == info
    for engine in (tight, twin):
        engine.append_video_chunk(FRAMES[3:4])  # the partner
    assert same(bits(tight), bits(twin))
    assert tight.get_cache_info() == twin.get_cache_info()


def test_a_still_image_that_runs_out_of_memory_leaves_the_waiting_frame_waiting(eager, monkeypatch):
    engine = VideoStreamingInference(*eager)
    engine.append_video_chunk(FRAMES[:3])
    before, info, extend, calls = bits(engine), engine.get_cache_info(), QwenRunner.extend, []

    def fails(runner, *args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("simulated")
        return extend(runner, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(QwenRunner, "extend", fails)
        with pytest.raises(torch.OutOfMemoryError):
            engine.append_frame(FRAMES[3])
    assert same(bits(engine), before)
    assert engine.get_cache_info() == info
    assert goes_on(engine, before)


def test_a_waiting_frame_and_a_still_image_evict_like_any_chunks(eager):
    waiting, padded = (
        VideoStreamingInference(*eager, odd=odd, eviction_config=EvictionConfig(100)) for odd in ("wait", "pad")
    )
    for start in range(0, 12, 2):
        for engine in (waiting, padded):
            engine.append_video_chunk(FRAMES[start : start + 1])
            engine.append_frame(FRAMES[start + 1])
    assert same(bits(waiting), bits(padded))
    assert waiting.get_cache_info() == padded.get_cache_info()
    assert waiting.get_cache_info()["eviction_stats"]["evictions"] > 2


def test_names_of_options_that_do_not_exist_are_refused(eager):
    for wrong in ({"wrapping": "one"}, {"odd": "drop"}, {"text_after_video": "last"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VideoStreamingInference(*eager, **wrong)


def test_an_answer_ends_at_an_end_token_but_not_before_its_least_length(engine, monkeypatch):
    first = int(question_logits(engine)[-1].argmax())
    monkeypatch.setattr(type(engine.runner), "end_ids", lambda _: {first})
    text, metrics = engine.ask(QUESTION, max_new_tokens=5, min_new_tokens=0)
    assert (text, metrics["output_tokens"]) == ("", 0)
    assert engine.ask(QUESTION, max_new_tokens=5, min_new_tokens=5)[1]["output_tokens"] == 5


def test_a_model_that_leaves_tokens_out_of_the_cache_is_refused():
    model, processor = load_streaming_model("small", attention="eager")
    wrapper = QwenInferenceWrapper(model, processor)
    model.activation_checkpointing_enable()
    model.train()
    for use in (
        lambda: wrapper.process_video_chunk(FRAMES[:2]),
        lambda: wrapper.native_video_inference(FRAMES[:2], QUESTION, max_new_tokens=3),
    ):
        with pytest.raises(UnsupportedCache, match=r"model.eval\(\)"):
            use()
    model.eval()
    wrapper.process_video_chunk(FRAMES[:2])
    assert wrapper.ask_question(QUESTION, 3)[0] == wrapper.native_video_inference(FRAMES[:2], QUESTION, 2.0, 3)[0]
