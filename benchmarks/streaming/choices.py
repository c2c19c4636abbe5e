"""Row `choices`: several answers scored from one prefill in one batch, against one after another."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.store.report import Row, lines_of
from benchmarks.store.timing import Contestant, interleaved_s
from benchmarks.streaming.lengths import QUESTION
from benchmarks.streaming.scale import Scale
from benchmarks.streaming.streams import grown, repeated, waiting
from consumers.streaming import VideoStreamingInference

KINDS = {
    "choices": ("A person walks", "A car drives", "It gets dark", "Nothing at all"),
    "choices-of-one-token": ("A", "B", "C", "D"),
}
_TOLERANCE = 0.05  # of a log-probability, in bfloat16


def measure(_folder: Path, scale: Scale) -> list[Row]:
    """One row for choices of several tokens, and one for single tokens.

    Raises:
        RuntimeError: the ways give other scores.
    """
    stream = grown(scale, scale.choice_tokens)
    return [_row(name, choices, stream, scale) for name, choices in KINDS.items()]


def _row(name: str, choices: tuple[str, ...], stream: VideoStreamingInference, scale: Scale) -> Row:
    together = stream.ask_choice(QUESTION, choices)[1]["scores"]
    alone = one_by_one(stream, choices)
    if any(not math.isclose(together[choice], alone[choice], abs_tol=_TOLERANCE) for choice in choices):
        raise RuntimeError(f"in one batch: {together}; one by one: {alone}")
    contestants = [
        Contestant(
            "one question for each choice",
            scale.repeats,
            waiting(scale.device, repeated(scale.repeats, lambda: one_by_one(stream, choices))),
        ),
        Contestant(
            "ask_choice: one prefill, one batch",
            scale.repeats,
            waiting(scale.device, repeated(scale.repeats, lambda: stream.ask_choice(QUESTION, choices))),
        ),
    ]
    times_s = interleaved_s(contestants, rounds=scale.rounds)
    lines = lines_of(contestants, times_s, base=contestants[0].name, unit_s=1e-3)
    return Row(name, f"score {len(choices)} answers such as {choices[0]!r}", "ms", lines)


def one_by_one(stream: VideoStreamingInference, choices: tuple[str, ...]) -> dict[str, float]:
    """Return each choice's score from a question of its own."""
    return {choice: stream.ask_choice(QUESTION, [choice])[1]["scores"][choice] for choice in choices}
