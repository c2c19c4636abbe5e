"""Multiple-choice questions asked with and without the cache: what each gave and took, question by question."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cache_store import CacheStoreError
from consumers.evaluation.longva import LongVA_Cached
from consumers.evaluation.statistics import CacheStatistics
from pipeline.sources import Question

_LOOK_AHEAD = 16  # questions; benchmarks ask a few about each video, one after another


@dataclass(frozen=True)
class Stages:
    """Seconds of one question, by where they went."""

    total_s: float
    pixels_s: float  # decoding and preprocessing
    tower_s: float
    read_s: float  # from the store

    @property
    def rest_s(self) -> float:
        """Projector, language model and all else."""
        return max(0.0, self.total_s - self.pixels_s - self.tower_s - self.read_s)


@dataclass(frozen=True)
class Answer:
    """One question, asked of one model both ways. Choices are letters, `logits` those of all letters in their order."""

    model: str
    row: int
    annotations: str
    question_id: str
    task: str | None
    dataset: str
    video_id: str
    video_path: str  # POSIX, relative to the data folder
    question: str
    options: list[str]
    answer: str
    duration: str | None
    domain: str | None
    cached: str | None
    live: str | None
    cached_logits: list[float]
    live_logits: list[float]
    agrees: bool  # whether both ways gave the same bits; the lists would not tell -0.0 and NaN apart
    is_hit: bool
    cached_stages: Stages | None
    live_stages: Stages | None
    problem: str | None = None  # why there is no answer

    @property
    def is_right(self) -> bool:
        """Whether the cached answer is the benchmark's."""
        return self.cached == self.answer

    def is_to(self, question: Question) -> bool:
        """Whether it is this very question that was asked: annotations may change between two runs."""
        return all(getattr(self, name) == value for name, value in _facts(question).items())

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Answer:
        """Return an answer as it was noted.

        Raises:
            TypeError: these are not its fields.
        """
        if not isinstance(value, dict):
            raise TypeError(f"an answer is an object, not {value!r}")
        stages = {
            name: None if value.get(name) is None else Stages(**value[name])
            for name in ("cached_stages", "live_stages")
        }
        return cls(**{**value, **stages})


def prompt_of(question: Question) -> str:
    """Return the question with its lettered options, and how to answer."""
    choices = question.choices
    assert choices is not None
    lines = [question.question or ""]
    lines += [f"{letter}. {option}" for letter, option in zip(choices.letters, choices.options, strict=True)]
    return "\n".join([*lines, "Answer with the letter of the right option alone."])


def compare(
    longva: LongVA_Cached, questions: Sequence[tuple[int, Question]], *, on_failure: Callable[[Exception], str]
) -> Iterator[Answer]:
    """Ask each question with the cache and without it, in turn.

    `on_failure` turns what a question raises into the reason that its answer gives; what it raises itself ends the
    comparison. Behind a URL the next video's feature is downloaded meanwhile.
    """
    for number, (row, question) in enumerate(questions):
        _prefetch_next_video(longva, question, questions[number + 1 : number + 1 + _LOOK_AHEAD])
        try:
            if question.sample.problem is not None:
                raise FileNotFoundError(question.sample.problem)
            yield _asked_both_ways(longva, row, question)
        except Exception as exc:  # noqa: BLE001 - one video's surprise must not end the evaluation: it is named instead
            yield unanswered(longva.model_path, row, question, on_failure(exc))


def unanswered(model: str, row: int, question: Question, problem: str) -> Answer:
    """Return what is noted of a question that could not be asked."""
    return _answer(model, row, question, problem=problem)


def _prefetch_next_video(longva: LongVA_Cached, question: Question, later: Sequence[tuple[int, Question]]) -> None:
    samples = (one.sample for _, one in later)
    following = next((sample for sample in samples if sample.video_id != question.sample.video_id), None)
    if longva.cache is not None and following is not None:
        stored = longva.cache.stored
        with suppress(CacheStoreError):  # what is wrong with it is told when it is asked about
            stored.prefetch(stored.key(following.video_id, dataset=following.dataset))


def _asked_both_ways(longva: LongVA_Cached, row: int, question: Question) -> Answer:
    assert question.choices is not None
    letters = question.choices.letters
    sample = question.sample
    video: dict[str, Any] = {"type": "video", "value": str(sample.path), "video_id": sample.video_id}
    video |= {"start": sample.start_s, "end": sample.end_s, "fps": sample.fps}
    message = [video, {"type": "text", "value": prompt_of(question)}]
    hits = longva.statistics.hits
    alone = CacheStatistics()
    before = longva.statistics.seconds()
    cached, cached_s = _timed(lambda: longva.letter_logits(message, letters, sample.dataset))
    after = longva.statistics.seconds()
    live, live_s = _timed(lambda: longva.letter_logits(message, letters, sample.dataset, live=alone))
    took = {name: after[name] - before[name] for name in after}
    return _answer(
        longva.model_path,
        row,
        question,
        cached=letters[int(cached.argmax())],
        live=letters[int(live.argmax())],
        cached_logits=cached.tolist(),
        live_logits=live.tolist(),
        agrees=torch.equal(cached.view(torch.uint8), live.view(torch.uint8)),
        is_hit=longva.statistics.hits > hits,
        cached_stages=Stages(cached_s, **took),
        live_stages=Stages(live_s, **alone.seconds()),
    )


def _answer(model: str, row: int, question: Question, **found: Any) -> Answer:
    nothing: dict[str, Any] = {
        **dict.fromkeys(("cached", "live", "cached_stages", "live_stages")),
        "cached_logits": [],
        "live_logits": [],
        "agrees": False,
        "is_hit": False,
    }
    return Answer(model=model, row=row, **_facts(question), **{**nothing, **found})


def _facts(question: Question) -> dict[str, Any]:
    """What an answer repeats of its question, by the answer's fields."""
    choices, sample = question.choices, question.sample
    assert choices is not None
    return {
        "annotations": question.annotations,
        "question_id": question.question_id,
        "task": question.task or question.question_type,
        "dataset": sample.dataset,
        "video_id": sample.video_id,
        "video_path": sample.relative_path,
        "question": question.question or "",
        "options": list(choices.options),
        "answer": choices.letters[choices.answer],
        "duration": question.duration,
        "domain": question.domain,
    }


def _timed(ask: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    started = time.perf_counter()
    return ask(), time.perf_counter() - started
