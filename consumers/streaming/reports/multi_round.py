"""Many questions in one stream: what each costs, that none leaves a trace, and how kept answers make the cache grow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.reports.failures import failure_of
from consumers.streaming.reports.report import Cell, Curves, Report, Table
from consumers.streaming.reports.setting import QUESTIONS, Setting
from consumers.streaming.video_sequence import Wrapping

CHOICES = ("Yes", "No")
BESIDE, KEPT = "questions beside the stream", "answers kept"
Row = dict[str, Cell]


def report_multi_round(
    setting: Setting,
    *,
    rounds: int = 5,
    chunk_frames: int = 4,
    chunks_per_round: int = 2,
    questions: Sequence[str] = QUESTIONS,
    choices: Sequence[str] = CHOICES,
    wrapping: Wrapping = "turns",
) -> Report:
    """Report on `rounds` of frames, a question and a choice beside the stream; then on as many with kept answers.

    After each question every key and value must be bitwise what it was, and after each round's frames what it is in a
    stream that was never asked. Rounds take `questions` in turns. A round that runs out of memory or context, or
    meets a damaged frame, is named in `failures`, and is the last one of its kind.

    Raises:
        ValueError: the video has too few frames, or there is nothing to ask.
        Exception: what ended the very first round.
    """
    video, needed = setting.video, rounds * chunks_per_round * chunk_frames
    if not questions or needed > video.num_frames:
        raise ValueError(
            f"{rounds} rounds need at least one question and {needed} frames; {video.path.name} gives "
            f"{video.num_frames}, taking one of every {video.stride}; take fewer, or a smaller stride"
        )
    made = _Rounds(setting, chunk_frames, chunks_per_round, wrapping)
    asked_by_round = [questions[number % len(questions)] for number in range(rounds)]
    asked = made.all(BESIDE, lambda number, question: made.beside(number, question, choices), asked_by_round)
    made.free()
    kept_stream = made.new_stream()
    kept = made.all(KEPT, lambda number, question: made.kept(kept_stream, number, question), asked_by_round)
    points = {
        name: [(float(row["round"] or 0), float(row["cache_tokens"] or 0)) for row in rows]
        for name, rows in (("asked beside the stream", asked), ("answers kept", kept))
    }
    times = {
        "asked beside the stream": [(float(r["round"] or 0), float(r["ttft_s"] or 0)) for r in asked],
        "answers kept": [(float(r["round"] or 0), float(r["ttft_s"] or 0)) for r in kept],
    }
    return Report(
        "multi-round",
        "Many questions in one stream",
        setting.facts() | {"wrapping": wrapping, "chunk_frames": chunk_frames, "choices": " / ".join(choices)},
        [
            Table("Questions beside the stream", asked, _ASKED_NOTE),
            Table("Answers kept in the stream", kept, "the cache grows by the frames, the question and the answer"),
            Table("Answers", made.answers),
        ],
        [
            Curves("Tokens in the cache", "round", "tokens", points),
            Curves("Time to the first token", "round", "seconds", times),
        ],
        failures=made.failures,
    )


_ASKED_NOTE = (
    "unchanged: every key and value is bitwise what it was before the question, and before the choice; as never asked: "
    "after the round's frames it is bitwise the cache of a stream that gets the same frames and no questions"
)


class _Rounds:
    """One stream that is asked, and one that is not."""

    def __init__(self, setting: Setting, chunk_frames: int, chunks_per_round: int, wrapping: Wrapping) -> None:
        self._setting, self._meter = setting, setting.meter
        self._chunk_frames, self._chunks, self._wrapping = chunk_frames, chunks_per_round, wrapping
        self._asked, self._silent = self.new_stream(), self.new_stream()
        self.answers: list[Row] = []
        self.failures: list[str] = []

    def new_stream(self) -> VideoStreamingInference:
        """Return an empty stream."""
        setting = self._setting
        return VideoStreamingInference(
            setting.model, setting.processor, wrapping=self._wrapping, **setting.pixel_bounds
        )

    def _append(self, stream: VideoStreamingInference, number: int) -> float:
        """Append a round's chunks; returns the seconds."""
        video, seconds = self._setting.video, 0.0
        for chunk in range(number * self._chunks, (number + 1) * self._chunks):
            frames = video.frames(chunk * self._chunk_frames, self._chunk_frames)
            when = video.timing(chunk * self._chunk_frames, len(frames))
            seconds += self._meter.timed(lambda f=frames, w=when: stream.append_video_chunk(f, **w))[1]  # type: ignore[misc]
        return seconds

    def all(self, kind: str, one: Callable[[int, str], Row], questions: Sequence[str]) -> list[Row]:
        """Return what each question's round gave, until one ends before its time; see `failure_of`."""
        rows: list[Row] = []
        try:
            for number, question in enumerate(questions):
                self._setting.told(number, len(questions), kind)
                rows.append(one(number, question))
        except Exception as exc:
            if not self.answers:
                raise
            self.failures.append(failure_of(f"{kind}, round {len(rows) + 1}", exc))
        return rows

    def free(self) -> None:
        """Let go of what the questions beside the stream were about."""
        self._asked.reset()
        self._silent.reset()

    def beside(self, number: int, question: str, choices: Sequence[str]) -> Row:
        """One round of questions that leave no trace."""
        seconds = self._append(self._asked, number)
        self._append(self._silent, number)
        before = cache_digest(self._asked)
        is_as_never_asked = before == cache_digest(self._silent)
        answer, metrics = self._asked.ask(question, self._setting.max_new_tokens)
        kept_by_ask = cache_digest(self._asked) == before
        choice, scored = self._asked.ask_choice(question, choices)
        kept_by_choice = cache_digest(self._asked) == before
        for holds, what in (
            (is_as_never_asked, "the cache is not that of a stream that was never asked"),
            (kept_by_ask, "the question changed the cache"),
            (kept_by_choice, "the choice changed the cache"),
        ):
            if not holds:
                self.failures.append(f"round {number + 1}: {what}")
        said: Row = {"round": number + 1, "kept": False, "question": question, "answer": answer, "choice": choice}
        self.answers.append(said)
        return self._row(self._asked, number, seconds, metrics) | {
            "choice_s": scored["total_latency"],
            "unchanged": kept_by_ask and kept_by_choice,
            "as_never_asked": is_as_never_asked,
        }

    def kept(self, stream: VideoStreamingInference, number: int, question: str) -> Row:
        """One round whose question and answer become part of the stream."""
        seconds = self._append(stream, number)
        before = stream.get_cache_info()["cache_seq_length"]
        answer, metrics = stream.ask(question, self._setting.max_new_tokens, update_state=True)
        row = self._row(stream, number, seconds, metrics)
        grown = stream.get_cache_info()["cache_seq_length"] - before
        if grown <= 0:
            self.failures.append(f"round {number + 1}: the kept answer is not in the cache")
        self.answers.append({"round": number + 1, "kept": True, "question": question, "answer": answer})
        return row | {"kept_tokens": grown}

    def _row(self, stream: VideoStreamingInference, number: int, append_s: float, metrics: dict[str, float]) -> Row:
        info = stream.get_cache_info()
        return {
            "round": number + 1,
            "frames": info["total_frames"],
            "cache_tokens": info["cache_seq_length"],
            "cache_bytes": info["cache_memory_bytes"],
            "append_s": append_s,
            "ttft_s": metrics["ttft"],
            "total_s": metrics["total_latency"],
            "output_tokens": int(metrics["output_tokens"]),
        }


def cache_digest(stream: VideoStreamingInference) -> str:
    """Return the SHA-256 of every key and value of a stream, layer by layer."""
    digest = hashlib.sha256()
    for pair in stream.sequence.manager.tensors():
        for tensor in pair:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
