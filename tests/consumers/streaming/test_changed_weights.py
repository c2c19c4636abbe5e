"""An answer is made by one set of weights: a stream whose model changes is refused until it begins anew."""

from __future__ import annotations

import pytest
import torch

from consumers.streaming import VideoStreamingInference, WeightsChanged, load_streaming_model
from consumers.streaming.decoding import score_choices
from tests.adapters import SWITCHES, AdaptedLinear
from tests.consumers.streaming.streams import QUESTION, append_chunks, bits, same, video

FRAMES = video(8)


def _optimizer_step(model):
    for weight in model.parameters():
        weight.requires_grad_().grad = torch.ones_like(weight)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def _loaded_anew(model):
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})


def _replaced_twice(model):
    layer = model.model.language_model.layers[0].mlp.down_proj
    for _ in range(2):
        layer.weight = torch.nn.Parameter(layer.weight + 1e-3, requires_grad=False)


def _switched(switch):
    def change(model):
        """Adapt a layer of the model, and at the second call switch its adapter."""
        mlp = model.model.language_model.layers[0].mlp
        if isinstance(mlp.down_proj, AdaptedLinear):
            SWITCHES[switch](mlp.down_proj)
        else:
            mlp.down_proj = AdaptedLinear(mlp.down_proj)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _optimizer_step,
        _loaded_anew,
        _replaced_twice,
        *[pytest.param(_switched(switch), id=f"adapter {switch}") for switch in SWITCHES],
    ],
)
def test_a_stream_of_weights_that_have_changed_is_refused_until_it_begins_anew(change):
    model, processor = load_streaming_model("small", attention="eager")
    engine = VideoStreamingInference(model, processor)
    change(model)  # before the first frame
    append_chunks(engine, FRAMES[:4], 2)
    engine.ask(QUESTION, max_new_tokens=2)
    change(model)
    before = bits(engine)
    for use in (
        lambda: engine.ask(QUESTION),
        lambda: next(engine.ask_stream(QUESTION, update_state=True)),
        lambda: engine.ask_choice(QUESTION, ["A", "B"]),
        lambda: engine.append_video_chunk(FRAMES[4:6]),
        lambda: engine.append_frame(FRAMES[4]),
    ):
        with pytest.raises(WeightsChanged, match="reset"):
            use()
    assert same(bits(engine), before)
    engine.reset()
    fresh = VideoStreamingInference(model, processor)
    for one in (engine, fresh):
        append_chunks(one, FRAMES[:4], 2)
        one.ask(QUESTION, max_new_tokens=2)
    assert same(bits(engine), bits(fresh))


@pytest.mark.parametrize("update_state", [False, True])
def test_an_answer_that_two_sets_of_weights_made_is_refused(update_state):
    model, processor = load_streaming_model("small", attention="eager")
    engine = VideoStreamingInference(model, processor)
    append_chunks(engine, FRAMES[:4], 2)
    before = bits(engine)
    events = engine.ask_stream(QUESTION, max_new_tokens=4, min_new_tokens=4, update_state=update_state)
    next(events)
    _loaded_anew(model)
    with pytest.raises(WeightsChanged, match="while it answered"):
        list(events)
    assert same(bits(engine), before)
    engine.reset()
    append_chunks(engine, FRAMES[:4], 2)
    engine.ask(QUESTION, max_new_tokens=2)


def test_scores_of_choices_that_two_sets_of_weights_made_are_refused(monkeypatch):
    model, processor = load_streaming_model("small", attention="eager")
    engine = VideoStreamingInference(model, processor)
    append_chunks(engine, FRAMES[:4], 2)

    def change_amid(*arguments):
        _loaded_anew(model)
        return score_choices(*arguments)

    monkeypatch.setattr("consumers.streaming.chunked.score_choices", change_amid)
    with pytest.raises(WeightsChanged, match="while it answered"):
        engine.ask_choice(QUESTION, ["A", "B"])


def test_a_model_that_was_loaded_in_inference_mode_is_refused():
    with torch.inference_mode():
        loaded = load_streaming_model("small", attention="eager")
    with pytest.raises(ValueError, match="inference_mode"):
        VideoStreamingInference(*loaded)


def test_inputs_go_where_the_model_has_been_moved():
    model, processor = load_streaming_model("small", attention="eager")
    engine = VideoStreamingInference(model, processor)
    assert engine.runner.ids(QUESTION).device == torch.device("cpu")
    model.to("meta")
    engine.reset()
    assert engine.runner.ids(QUESTION).device == torch.device("meta")
