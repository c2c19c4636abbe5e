"""What an evaluation came to, added up from its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from consumers.evaluation.comparison import Answer, Stages


@dataclass(frozen=True)
class Accuracy:
    """The right answers of a group of questions."""

    questions: int
    right: int  # with the cache
    right_live: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.right / self.questions if self.questions else 0.0


@dataclass(frozen=True)
class ModelSummary:
    """One model's questions. Accuracies count those that were answered."""

    model: str
    questions: int
    answered: int
    agreeing: int
    hits: int
    overall: Accuracy
    by_duration: dict[str, Accuracy]
    by_domain: dict[str, Accuracy]
    by_task: dict[str, Accuracy]
    cached: Stages  # seconds of all questions
    live: Stages

    @property
    def is_sound(self) -> bool:
        """Whether everything was answered, with the same bits both ways, from the store."""
        return self.questions == self.answered == self.agreeing == self.hits > 0

    @property
    def speedup(self) -> float:
        """How many times as fast the cached way was; 0 if nothing was answered."""
        return self.live.total_s / self.cached.total_s if self.cached.total_s else 0.0

    @property
    def possible_speedup(self) -> float:
        """The most that a cache could give, were reading free: all but decoding, preprocessing and tower remains."""
        rest_s = self.live.total_s - self.live.pixels_s - self.live.tower_s
        return self.live.total_s / rest_s if rest_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything, the derived figures included."""
        return {
            **asdict(self),
            "is_sound": self.is_sound,
            "accuracy": self.overall.share,
            "speedup": self.speedup,
            "possible_speedup": self.possible_speedup,
        }


def summary_of(model: str, answers: Sequence[Answer]) -> ModelSummary:
    """Add up one model's answers."""
    answered = [answer for answer in answers if answer.problem is None]
    return ModelSummary(
        model=model,
        questions=len(answers),
        answered=len(answered),
        agreeing=sum(answer.agrees for answer in answered),
        hits=sum(answer.is_hit for answer in answered),
        overall=_accuracy(answered),
        by_duration=_by(answered, lambda answer: answer.duration),
        by_domain=_by(answered, lambda answer: answer.domain),
        by_task=_by(answered, lambda answer: answer.task),
        cached=_sum(answer.cached_stages for answer in answered),
        live=_sum(answer.live_stages for answer in answered),
    )


def fault_of(answer: Answer) -> str | None:
    """Return what is wrong with an answer; None if nothing is."""
    if answer.problem is not None:
        return answer.problem
    if not answer.agrees:
        return f"the cache gives other logits: {answer.cached} with it, {answer.live} without"
    return None if answer.is_hit else "its feature was not found in the store"


def percent(share: float) -> str:
    """Return a share as people read it, cut off instead of rounded: 100.0 % means all."""
    return f"{int(share * 1000) / 10:.1f} %"


def _accuracy(answers: Sequence[Answer]) -> Accuracy:
    return Accuracy(
        len(answers),
        sum(answer.is_right for answer in answers),
        sum(answer.live == answer.answer for answer in answers),
    )


def _by(answers: Sequence[Answer], group_of: Callable[[Answer], str | None]) -> dict[str, Accuracy]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        name = group_of(answer)
        if name is not None:
            groups.setdefault(name, []).append(answer)
    return {name: _accuracy(group) for name, group in groups.items()}


def _sum(stages: Iterable[Stages | None]) -> Stages:
    known = [one for one in stages if one is not None]
    return Stages(
        total_s=sum(one.total_s for one in known),
        pixels_s=sum(one.pixels_s for one in known),
        tower_s=sum(one.tower_s for one in known),
        read_s=sum(one.read_s for one in known),
    )
