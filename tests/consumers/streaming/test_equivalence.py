"""A stream equals one prefill of the same tokens, and each way to get the positions wrong shows."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import DynamicCache

from consumers.streaming import VideoStreamingInference, load_streaming_model, prompts
from tests.consumers.streaming.streams import QUESTION, append_chunks, bits, question_logits, same, video
from tests.documents import REPOSITORY, blocks

FPS = 16 / 3  # 1.5 ticks from grid to grid at the small model's 4 ticks per second
SHORT, LONG = 12, 120  # frames, 6 tokens a pair: below and above ONE_BLOCK tokens in all
ONE_BLOCK = 192  # keys that a matrix product sums over in one go, of every CPU measured
LONGEST = {("continuous", 2): 40, ("continuous", 4): 40, ("continuous", 6): 40}  # frames that ONE_BLOCK tokens have
LONGEST |= {("turns", 2): 14, ("turns", 4): 20, ("turns", 6): 24}
THREADS = sorted({1, 2, torch.get_num_threads()})  # the last as torch was imported, before tests choose one
EAGER_TOLERANCE = SDPA_TOLERANCE = 1e-5  # of logits with a standard deviation of 0.9
WRONG = 5e-2


class OneShot:
    """The same conversation as transformers takes it: ids, pixels and grids, in one forward."""

    def __init__(self, model, runner, frames, *, chunk: int | None = None, question: str = QUESTION):
        self.model, self.token = model, model.config.video_token_id
        resized = [runner.resize(frame) for frame in frames]
        rows, columns = runner.token_grid(resized[0])
        size = chunk or len(frames)
        vision = prompts.VISION_START + "<|video_pad|>" * (size // 2 * rows * columns) + prompts.VISION_END
        if chunk is None:
            turns = prompts.USER + vision + question + prompts.END_OF_TURN
        else:
            turns = (prompts.USER + vision + prompts.END_OF_TURN) * (len(frames) // chunk)
            turns += prompts.USER + question + prompts.END_OF_TURN
        self.ids = runner.ids(prompts.system_turn(prompts.SYSTEM_PROMPT) + turns + prompts.ASSISTANT)[None]
        patches, grids = [], []
        for start in range(0, len(frames), size):
            part, grid = runner.patches(resized[start : start + size])
            patches.append(part)
            grids.append(grid)
        self.inputs = {
            "mm_token_type_ids": (self.ids == self.token).int() * 2,
            "video_grid_thw": torch.cat(grids),
            "second_per_grid_ts": torch.full((len(grids),), 2 / FPS),
        }
        self.patches = torch.cat(patches)
        self.positions = model.model.get_rope_index(self.ids, **self.inputs)[0]

    @torch.no_grad()
    def run(self, *, positions=None):
        self.model.model.rope_deltas = None
        inputs = self.inputs if positions is None else {"video_grid_thw": self.inputs["video_grid_thw"]}
        return self.model(input_ids=self.ids, position_ids=positions, pixel_values_videos=self.patches, **inputs)

    def logits(self, *, positions=None) -> torch.Tensor:
        return self.run(positions=positions).logits[0]


def streamed(loaded, frames, chunk: int, **options) -> tuple[VideoStreamingInference, torch.Tensor]:
    engine = VideoStreamingInference(*loaded, **options)
    append_chunks(engine, frames, chunk, fps=FPS)
    return engine, question_logits(engine)


@pytest.fixture(params=THREADS)
def threads(request):
    """That many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def in_blocks():
    """The small model with the attention that docs/streaming.md registers."""
    (block,) = [text for text in blocks(REPOSITORY / "docs" / "streaming.md", "python") if "eager_in_blocks" in text]
    exec(compile(block.partition("torch.set_num_threads")[0], "docs/streaming.md", "exec"), {})
    return load_streaming_model("small", attention="eager_in_blocks")


def assert_bitwise_one_prefill(engine, found: torch.Tensor, whole: OneShot, *, positions=None) -> None:
    """Logits `found` over a question, and the keys and values of the stream before it."""
    out, held = whole.run(positions=positions), engine.sequence.manager.get_seq_length()
    layers = out.past_key_values.layers
    wanted = [tensor[:, :, :held] for layer in layers for tensor in (layer.keys, layer.values)]
    assert same(bits(engine), wanted)
    assert torch.equal(found, out.logits[0, -len(found) :])


@pytest.mark.parametrize("chunk", [2, 4, 6])
@pytest.mark.parametrize("is_longest", [False, True])
@pytest.mark.parametrize("wrapping", ["continuous", "turns"])
def test_eager_attention_is_bitwise_one_prefill_up_to_192_keys_on_one_thread(eager, wrapping, is_longest, chunk):
    frames = video(LONGEST[wrapping, chunk] if is_longest else SHORT)
    engine, found = streamed(eager, frames, chunk, wrapping=wrapping)
    whole = OneShot(eager[0], engine.runner, frames, chunk=chunk if wrapping == "turns" else None)
    assert whole.ids.shape[1] in (range(180, ONE_BLOCK + 1) if is_longest else range(180))
    assert_bitwise_one_prefill(engine, found, whole)


def test_larger_frames_are_bitwise_too(eager):
    frames = video(4, height=168, width=168)
    engine, found = streamed(eager, frames, 2, wrapping="continuous")
    assert_bitwise_one_prefill(engine, found, OneShot(eager[0], engine.runner, frames))


@pytest.mark.parametrize("chunk", [2, 4, 6])
@pytest.mark.parametrize("wrapping", ["continuous", "turns"])
def test_values_summed_in_blocks_are_bitwise_one_prefill_at_any_length_on_one_thread(in_blocks, wrapping, chunk):
    frames = video(LONG)
    engine, found = streamed(in_blocks, frames, chunk, wrapping=wrapping)
    whole = OneShot(in_blocks[0], engine.runner, frames, chunk=chunk if wrapping == "turns" else None)
    assert whole.ids.shape[1] > 2 * ONE_BLOCK
    assert_bitwise_one_prefill(engine, found, whole)


def test_values_summed_in_blocks_are_eager_attention_within_rounding(eager, in_blocks):
    frames = video(LONG)
    found, wanted = (streamed(loaded, frames, 4, wrapping="continuous")[1] for loaded in (in_blocks, eager))
    assert (found - wanted).abs().max() < EAGER_TOLERANCE


@pytest.mark.parametrize("chunk", [2, 4, 6])
@pytest.mark.parametrize("count", [SHORT, LONG])
@pytest.mark.parametrize("wrapping", ["continuous", "turns"])
def test_eager_attention_is_one_prefill_within_rounding_on_any_number_of_threads(
    eager, threads, wrapping, count, chunk
):
    frames = video(count)
    engine, found = streamed(eager, frames, chunk, wrapping=wrapping)
    wanted = OneShot(eager[0], engine.runner, frames, chunk=chunk if wrapping == "turns" else None).logits()
    assert (found - wanted[-len(found) :]).abs().max() < EAGER_TOLERANCE


@pytest.mark.parametrize("chunk", [2, 4, 6])
@pytest.mark.parametrize("count", [SHORT, LONG])
def test_a_stream_is_one_prefill_within_rounding_of_sdpa(sdpa, threads, count, chunk):
    frames = video(count)
    engine, found = streamed(sdpa, frames, chunk, wrapping="continuous")
    wanted = OneShot(sdpa[0], engine.runner, frames).logits()[-len(found) :]
    assert (found - wanted).abs().max() < SDPA_TOLERANCE
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_a_stream_is_one_prefill_within_rounding_of_16_bits(threads, dtype, tolerance):
    loaded, frames = load_streaming_model("small", dtype=dtype), video(LONG)
    engine, found = streamed(loaded, frames, 4, wrapping="continuous")
    wanted = OneShot(loaded[0], engine.runner, frames).logits()[-len(found) :]
    assert (found - wanted).abs().max() < tolerance
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize(("kind", "count"), [("eager", 4), ("eager", 40), ("eager", LONG), ("in_blocks", LONG)])
def test_the_original_rule_for_text_after_a_video(request, kind, count):
    """One prefill with positions of our own: text goes on one after the largest id of the video."""
    loaded, frames = request.getfixturevalue(kind), video(count)
    engine, found = streamed(loaded, frames, 2, wrapping="continuous", text_after_video="maximum")
    whole = OneShot(loaded[0], engine.runner, frames)
    positions = whole.positions.clone()
    end = int((whole.ids[0] == whole.token).nonzero().max()) + 1
    shift = int(positions[..., :end].max()) + 1 - int(positions[0, 0, end])
    positions[..., end:] += shift
    wanted = whole.logits(positions=positions)[-len(found) :]
    assert (found - wanted).abs().max() < EAGER_TOLERANCE
    if kind == "in_blocks" or whole.ids.shape[1] <= ONE_BLOCK:
        assert_bitwise_one_prefill(engine, found, whole, positions=positions)
    assert (shift > 0) == (count > 4)
    by_the_other_rule = whole.logits()[-len(found) :]
    assert bool((found - by_the_other_rule).abs().max() > WRONG) == (count > 4)


def test_still_images_are_turns_of_their_own(eager):
    frames = video(3)
    engine = VideoStreamingInference(*eager)
    for frame in frames:
        engine.append_frame(frame, text_content="Look.")
    runner, image = engine.runner, eager[0].config.image_token_id
    turn = f"{prompts.USER}{prompts.VISION_START}{'<|image_pad|>' * 6}{prompts.VISION_END}Look.{prompts.END_OF_TURN}"
    text = prompts.system_turn(prompts.SYSTEM_PROMPT) + turn * 3 + prompts.USER + QUESTION + prompts.END_OF_TURN
    ids = runner.ids(text + prompts.ASSISTANT)[None]
    parts = [runner.patches([runner.resize(frame)] * 2) for frame in frames]
    eager[0].model.rope_deltas = None
    with torch.no_grad():
        wanted = eager[0](
            input_ids=ids,
            mm_token_type_ids=(ids == image).int(),
            pixel_values=torch.cat([patches for patches, _ in parts]),
            image_grid_thw=torch.cat([grid for _, grid in parts]),
        ).logits[0]
    found = question_logits(engine)
    assert torch.equal(found, wanted[-len(found) :])


def appended_with(loaded, frames, chunk: int, *, positions, stale: int | None = None) -> torch.Tensor:
    """The question's logits when chunks are appended through transformers, `positions` given or left to it."""
    model, runner = loaded[0], VideoStreamingInference(*loaded).runner
    whole, cache = OneShot(model, runner, frames), DynamicCache(config=model.config)
    first = int((whole.ids[0] == whole.token).nonzero().min())
    tokens = chunk // 2 * 6
    bounds = [0, *range(first + tokens, first + len(frames) // chunk * tokens + 1, tokens), whole.ids.shape[1]]
    resized = [runner.resize(frame) for frame in frames]
    model.model.rope_deltas = None if stale is None else torch.tensor([[stale]])
    with torch.no_grad():
        for index, (start, end) in enumerate(itertools.pairwise(bounds)):
            ids, part = whole.ids[:, start:end], {}
            if (ids == whole.token).any():
                patches, grid = runner.patches(resized[index * chunk : (index + 1) * chunk])
                part = {"pixel_values_videos": patches, "video_grid_thw": grid}
            if positions is None and part and stale is None:
                part |= {"mm_token_type_ids": (ids == whole.token).int() * 2}
                part |= {"second_per_grid_ts": torch.tensor([2 / FPS])}
            given = None if positions is None else positions(whole)[..., start:end]
            out = model(input_ids=ids, position_ids=given, past_key_values=cache, use_cache=True, **part)
    return out.logits[0]


def per_chunk_floor(whole: OneShot) -> torch.Tensor:
    """Ticks rounded down within each chunk of 3 grids and added up: 0 1 3 | 4 5 7 instead of 0 1 3 | 4 6 7."""
    positions = whole.positions.clone()
    video_tokens = (whole.ids[0] == whole.token).nonzero()[:, 0]
    start, grids = int(positions[1, 0, video_tokens[0]]), len(video_tokens) // 6
    ticks = torch.tensor([int(1.5 * (g % 3)) + int(4.5 * (g // 3)) for g in range(grids)]) + start
    positions[0, 0, video_tokens] = ticks.repeat_interleave(6)
    return positions


def test_the_controls_fail(eager):
    """The same harness gives the right answer with right positions, and shows each wrong way."""
    frames = video(24)
    wanted = streamed(eager, frames, 6, wrapping="continuous")[1]
    right = appended_with(eager, frames, 6, positions=lambda whole: whole.positions)
    assert (right - wanted).abs().max() < EAGER_TOLERANCE
    wrong = {
        "no position ids": appended_with(eager, frames, 6, positions=None),
        "stale rope_deltas": appended_with(eager, frames, 6, positions=None, stale=-37),
        "rounding chunk by chunk": appended_with(eager, frames, 6, positions=per_chunk_floor),
    }
    for name, found in wrong.items():
        assert (found - wanted).abs().max() > WRONG, name


def test_a_video_for_each_chunk_is_another_conversation_than_one_video(eager):
    frames = video(SHORT)
    one, many = (streamed(eager, frames, 4, wrapping=wrapping)[1] for wrapping in ("continuous", "turns"))
    assert (one[-1] - many[-1]).abs().max() > WRONG


def test_timestamps_of_a_regular_video_give_what_its_rate_gives(eager):
    frames = video(SHORT)
    engine = VideoStreamingInference(*eager, wrapping="continuous")
    for start in range(0, SHORT, 4):
        times = [100 + index / FPS for index in range(start, start + 4)]
        engine.append_video_chunk(frames[start : start + 4], timestamps=times)
    assert torch.equal(question_logits(engine), streamed(eager, frames, 4, wrapping="continuous")[1])


def test_odd_chunks_wait_and_give_what_even_ones_give(eager):
    frames = video(SHORT)
    odd, even = (streamed(eager, frames, chunk, wrapping="continuous")[1] for chunk in (3, 6))
    assert torch.equal(odd, even)


def test_a_padded_chunk_repeats_its_last_frame_and_keeps_the_time(eager):
    frames = video(6)
    engine = VideoStreamingInference(*eager, wrapping="continuous", odd="pad")
    append_chunks(engine, frames, 3, fps=FPS)
    times = [0, 1, 2, 2, 3, 4, 5, 5]
    wanted = VideoStreamingInference(*eager, wrapping="continuous")
    wanted.append_video_chunk([frames[index] for index in times], timestamps=[index / FPS for index in times])
    assert torch.equal(question_logits(engine), question_logits(wanted))
