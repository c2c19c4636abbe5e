"""Models load from checkpoints without torchvision, and the wrapper answers as stream and as one shot."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from consumers.streaming import (
    QwenInferenceWrapper,
    StreamQwenModel,
    VideoStreamingInference,
    load_streaming_model,
    qwen_wrapper,
)
from consumers.streaming.errors import ContextTooLong, NonFiniteLogits
from pipeline.errors import EncoderError
from tests.consumers.streaming.streams import QUESTION, bits, same, video
from tests.pipeline.encoders.checkpoints import save_qwen

FRAMES = video(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def wrapper(eager):
    return QwenInferenceWrapper(*eager, wrapping="continuous")


def test_a_checkpoint_folder_loads_and_answers(folder):
    model, processor = load_streaming_model(str(folder))
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(FRAMES)
    assert engine.ask(QUESTION, max_new_tokens=3)[1]["output_tokens"] <= 3


def test_the_model_of_earlier_scripts_loads_too_and_keeps_no_state(folder):
    model, processor = load_streaming_model(str(folder))
    old = StreamQwenModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa").eval()
    assert type(old) is StreamQwenModel
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in old.state_dict().items())
    engines = [VideoStreamingInference(each, processor) for each in (model, old)]
    for engine in engines:
        engine.append_video_chunk(FRAMES)
    assert same(*map(bits, engines))
    assert old.stream_state == {"last_cache_position": -1, "rope_deltas": None}
    old.stream_state["last_cache_position"] = 3
    old.reset_stream_state()
    assert old.stream_state == {"last_cache_position": -1, "rope_deltas": None}
    assert StreamQwenModel(old.config).stream_state == old.stream_state


def test_video_bounds_of_the_checkpoint_are_used(folder):
    file = folder / "video_preprocessor_config.json"
    file.write_text('{"size": {"shortest_edge": 3136, "longest_edge": 6272}, "video_processor_type": "any"}')
    try:
        model, processor = load_streaming_model(str(folder))
    finally:
        file.unlink()
    engine = VideoStreamingInference(model, processor)
    resized = engine.runner.resize(np.zeros((280, 280, 3), np.uint8))
    assert resized.shape[0] * resized.shape[1] <= 6272


def test_folders_that_are_no_model_are_refused(folder, tmp_path):
    with pytest.raises(EncoderError, match="no checkpoint folder"):
        load_streaming_model(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EncoderError, match=r"no Qwen2\.5-VL checkpoint"):
        load_streaming_model(str(tmp_path))
    with pytest.raises(EncoderError, match="dtype 'int3'"):
        load_streaming_model("small", dtype="int3")


def test_the_small_models_body_is_the_encoders():
    from pipeline.encoders.qwen2_5_vl import _small_model

    body = load_streaming_model("small")[0].model.state_dict()
    wanted = _small_model("float32").state_dict()
    assert body.keys() == wanted.keys()
    assert all(torch.equal(body[name], tensor) for name, tensor in wanted.items())


def test_the_wrapper_streams(wrapper, eager):
    figures = wrapper.process_video_chunk(FRAMES[:4], fps=2.0, manual_time=3.0)
    assert (figures["total_frames"], figures["chunks_encoded"]) == (4, 1)
    assert figures["encode_latency"] > 0
    assert wrapper.ask_question(QUESTION, max_new_tokens=3, manual_time=3.0)[1]["ttft"] > 0
    assert wrapper.ask_choice(QUESTION, ["A", "B"], manual_time=3.0)[0] in ("A", "B")
    wrapper.reset()
    assert wrapper.get_cache_info()["total_frames"] == 0
    images = QwenInferenceWrapper(*eager)
    assert images.process_frame(FRAMES[0], manual_time=0)["total_frames"] == 1


def test_the_wrapper_takes_all_options_of_a_question_and_no_others(wrapper):
    wrapper.process_video_chunk(FRAMES[:4])
    options = {"min_new_tokens": 8, "do_sample": True, "temperature": 5.0, "top_p": 1.0}
    answers = []
    for ask in (wrapper.ask_question, wrapper.engine.ask):
        torch.manual_seed(0)
        answers.append(ask(QUESTION, max_new_tokens=8, **options)[0])
    assert answers[0] == answers[1] != wrapper.ask_question(QUESTION, max_new_tokens=8)[0]
    for call in (
        lambda **wrong: wrapper.ask_question(QUESTION, **wrong),
        lambda **wrong: wrapper.ask_choice(QUESTION, ["A", "B"], **wrong),
        lambda **wrong: wrapper.process_frame(FRAMES[0], **wrong),
        lambda **wrong: wrapper.process_video_chunk(FRAMES[:2], **wrong),
        lambda **wrong: wrapper.native_video_inference(FRAMES[:2], QUESTION, **wrong),
        lambda **wrong: wrapper.single_frame_inference(FRAMES[0], QUESTION, **wrong),
    ):
        with pytest.raises(TypeError, match="max_new_token'"):
            call(max_new_token=3)


def test_one_shot_inference_answers_as_the_stream_and_leaves_it_alone(wrapper):
    wrapper.process_video_chunk(FRAMES[:4])
    wrapper.process_video_chunk(FRAMES[4:])
    before = bits(wrapper.engine)
    native, metrics = wrapper.native_video_inference(FRAMES, QUESTION, max_new_tokens=12, manual_time=1)
    assert native == wrapper.ask_question(QUESTION, max_new_tokens=12)[0]
    assert 0 < metrics["ttft"] < metrics["total_latency"]
    assert same(bits(wrapper.engine), before)


@pytest.mark.parametrize(
    ("option", "value"),
    [("no_repeat_ngram_size", 1), ("max_time", 1e-9), ("num_beams", 2), ("use_cache", False)],
)
def test_one_shot_inference_is_greedy_whatever_the_checkpoints_generation_config_says(
    wrapper, eager, monkeypatch, option, value
):
    own = eager[0].generation_config
    monkeypatch.setattr(own, option, value)
    wrapper.process_video_chunk(FRAMES)
    native, _ = wrapper.native_video_inference(FRAMES, QUESTION, max_new_tokens=12)
    assert native == wrapper.ask_question(QUESTION, max_new_tokens=12)[0]
    monkeypatch.setattr(eager[0], "generate", None)
    with pytest.raises(TypeError):
        wrapper.native_video_inference(FRAMES, QUESTION)
    assert eager[0].generation_config is own


def test_one_shot_inference_has_the_streams_system_prompt(eager, monkeypatch):
    model, processor = eager
    seen, real = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: (seen.append(given["input_ids"][0]), real(**given))[1])
    wrapper = QwenInferenceWrapper(model, processor, wrapping="continuous", system_prompt="Count like a pirate.")
    wrapper.process_video_chunk(FRAMES)
    native, _ = wrapper.native_video_inference(FRAMES, QUESTION, max_new_tokens=12)
    assert native == wrapper.ask_question(QUESTION, max_new_tokens=12)[0]
    wrapper.single_frame_inference(FRAMES[0], QUESTION, max_new_tokens=2)
    opening = "<|im_start|>system\nCount like a pirate.<|im_end|>\n"
    assert [processor.tokenizer.decode(ids).startswith(opening) for ids in seen] == [True, True]


def test_times_of_one_shot_inference_count_from_before_the_frames_are_resized(wrapper, monkeypatch):
    """On a clock that moves by one with each frame that is resized."""
    resized, runner = [], wrapper.engine.runner
    real = runner.resize
    monkeypatch.setattr(runner, "resize", lambda frame: (resized.append(frame), real(frame))[1])
    monkeypatch.setattr(qwen_wrapper, "time", SimpleNamespace(perf_counter=lambda: float(len(resized))))
    _, video_times = wrapper.native_video_inference(FRAMES, QUESTION, max_new_tokens=2)
    _, image_times = wrapper.single_frame_inference(FRAMES[0], QUESTION, max_new_tokens=2)
    assert (video_times["ttft"], video_times["total_latency"]) == (len(FRAMES), len(FRAMES))
    assert (image_times["ttft"], image_times["total_latency"]) == (1, 1)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, None])
def test_one_shot_inference_refuses_what_is_no_number_of_tokens(wrapper, wrong):
    for ask in (wrapper.native_video_inference, wrapper.single_frame_inference):
        with pytest.raises(ValueError, match=r"max_new_tokens.* must"):
            ask(FRAMES[:1] if ask == wrapper.native_video_inference else FRAMES[0], QUESTION, max_new_tokens=wrong)


def test_a_model_is_loaded_with_its_processor_or_named_without_one(eager, folder):
    assert QwenInferenceWrapper(folder).process_video_chunk(FRAMES[:2])["total_frames"] == 2
    for wrong in (("small", eager[1]), (folder, eager[1]), (eager[0],)):
        with pytest.raises(ValueError, match="a loaded model with its processor"):
            QwenInferenceWrapper(*wrong)


def test_one_shot_logits_that_decide_nothing_are_no_answer():
    model, processor = load_streaming_model("small")
    with torch.no_grad():
        model.lm_head.weight.mul_(float("inf"))
    wrapper = QwenInferenceWrapper(model, processor)
    for ask in (
        lambda: wrapper.native_video_inference(FRAMES, QUESTION, max_new_tokens=3),
        lambda: wrapper.single_frame_inference(FRAMES[0], QUESTION, max_new_tokens=3),
    ):
        with pytest.raises(NonFiniteLogits, match="float32"):
            ask()


def test_one_frame_alone(eager):
    wrapper = QwenInferenceWrapper(*eager)
    text, metrics = wrapper.single_frame_inference(FRAMES[0], QUESTION, max_new_tokens=5, manual_time=0)
    assert metrics["output_tokens"] <= 5
    assert text == wrapper.single_frame_inference(FRAMES[0], QUESTION, max_new_tokens=5)[0]
    with pytest.raises(ValueError, match="at least one frame"):
        wrapper.native_video_inference([], QUESTION)
    with pytest.raises(ValueError, match="fps must be a finite number above 0"):
        wrapper.native_video_inference(FRAMES, QUESTION, fps=0)
    with pytest.raises(ValueError, match=r"fps 1e-18 .* 1e\+11 s"):
        wrapper.native_video_inference(FRAMES, QUESTION, fps=1e-18)
    for too_long in ({"question": "x" * 9000}, {"question": QUESTION, "max_new_tokens": 8192}):
        with pytest.raises(ContextTooLong, match="the video, the question and its answer"):
            wrapper.native_video_inference(FRAMES[:2], **too_long)
    odd, _ = wrapper.native_video_inference(FRAMES[:3], QUESTION, max_new_tokens=5)
    even, _ = wrapper.native_video_inference([*FRAMES[:3], FRAMES[2]], QUESTION, max_new_tokens=5)
    assert odd == even


def test_a_processor_with_a_video_part_gives_the_videos_bounds(eager):
    """As transformers' own has, which needs torchvision."""
    model, processor = eager
    bounds = {"shortest_edge": 3136, "longest_edge": 6272}
    settings = {**processor.image_processor.to_dict(), "size": bounds, "fps": 2.0, "do_sample_frames": False}
    video_part = SimpleNamespace(size=bounds, to_dict=lambda: settings)
    whole = SimpleNamespace(video_processor=video_part, **vars(processor))
    engine = VideoStreamingInference(model, whole)
    height, width, _ = engine.runner.resize(np.zeros((280, 280, 3), np.uint8)).shape
    assert 3136 <= height * width <= 6272
    assert engine._extract_vision_segment("none") == "none"
