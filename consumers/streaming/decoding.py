"""From logits to an answer: the rule that picks each token, and text that comes in whole characters."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from consumers.numeric_options import require_numbers, require_whole_numbers
from consumers.streaming.errors import NonFiniteLogits
from consumers.streaming.prompts import END_OF_TURN
from consumers.streaming.video_sequence import VideoSequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for the first bytes of a character


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen: the likeliest, or drawn from the nucleus of `top_p` at `temperature`.

    Until `min_new_tokens` are there the answer cannot end. `repetition_penalty` divides positive and multiplies
    negative logits of ids that the question or the answer already has.
    """

    max_new_tokens: int
    min_new_tokens: int = 1
    do_sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require_whole_numbers(max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens)
        require_numbers(temperature=self.temperature, top_p=self.top_p, repetition_penalty=self.repetition_penalty)
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(f"0 <= min_new_tokens <= max_new_tokens and 1 <= max_new_tokens must hold: {self}")
        # NaN is within nothing. Logits that are divided by both stay within float32.
        if not (0 < self.top_p <= 1 and all(1e-15 <= f <= 1e15 for f in (self.temperature, self.repetition_penalty))):
            raise ValueError(
                f"temperature and repetition_penalty must lie within [1e-15, 1e15], top_p within (0, 1]: {self}"
            )

    def pick(self, logits: torch.Tensor, *, seen: torch.Tensor, forbidden: set[int]) -> int:
        """Return the id of the next token, from logits [vocabulary].

        Raises:
            NonFiniteLogits: one of an id that may come is NaN or plus infinity, or all are minus infinity.
        """
        scores = logits.float().clone()
        if self.repetition_penalty != 1.0 and len(seen):
            old = scores[seen]
            scores[seen] = torch.where(old > 0, old / self.repetition_penalty, old * self.repetition_penalty)
        scores[list(forbidden)] = -torch.inf
        is_finite = scores.amax().isfinite()  # stays on the device, which is waited for once a token
        if self.do_sample:
            # On a GPU, drawing from NaN would end the process's use of it.
            scores = torch.where(is_finite, scores, 0.0)
            chances, order = torch.softmax(scores / self.temperature, dim=-1).sort(descending=True)
            chances[chances.cumsum(0) - chances >= self.top_p] = 0.0  # the likeliest always stays
            best = order[torch.multinomial(chances, 1)]
        else:
            best = scores.argmax()
        picked = int(torch.where(is_finite, best, -1))
        if picked < 0:
            raise NonFiniteLogits(_name(logits.dtype))
        return picked


@dataclass
class Answer:
    """One answer while it is made: on a branch of a sequence, which it extends token by token."""

    branch: VideoSequence
    question_ids: torch.Tensor
    sampling: Sampling
    started: float  # time.perf_counter() when the question came
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ttft: float = 0.0  # seconds from the question to the first token

    def tokens(self) -> Iterator[dict[str, Any]]:
        """Yield `{type: "token", delta, text, ttft}` whenever whole characters are there; then the answer is complete.

        A token that ends the answer is neither in `ids` nor in `text`.
        """
        runner, ends = self.branch.runner, self.branch.runner.end_ids()
        logits = runner.extend_text(self.branch.manager, self.question_ids)[0, -1]
        while len(self.ids) < self.sampling.max_new_tokens:
            if self.ids:
                last = torch.tensor(self.ids[-1:], device=runner.device)
                logits = runner.extend_text(self.branch.manager, last)[0, -1]
            picked = self._pick(logits, ends)
            self.ttft = self.ttft or time.perf_counter() - self.started
            if picked in ends:
                break
            self.ids.append(picked)
            yield from self._grown()
        yield from self._grown(is_last=True)

    def _pick(self, logits: torch.Tensor, ends: set[int]) -> int:
        is_early = len(self.ids) < self.sampling.min_new_tokens
        said = torch.tensor(self.ids, dtype=torch.long, device=self.question_ids.device)
        seen = torch.unique(torch.cat([self.question_ids, said]))
        return self.sampling.pick(logits, seen=seen, forbidden=ends if is_early else set())

    def _grown(self, *, is_last: bool = False) -> Iterator[dict[str, Any]]:
        text = str(self.branch.runner.tokenizer.decode(self.ids, skip_special_tokens=True))
        if not is_last:
            text = text.rstrip(UNFINISHED)
        if len(text) > len(self.text):
            delta, self.text = text[len(self.text) :], text
            yield {"type": "token", "delta": delta, "text": text, "ttft": self.ttft}

    def close_turn(self) -> None:
        """Append what the branch lacks of the assistant's turn, so that another turn can follow."""
        runner, manager = self.branch.runner, self.branch.manager
        fed = max(0, len(self.ids) - 1) if self._last_is_unfed() else len(self.ids)
        rest = torch.tensor(self.ids[fed:], dtype=torch.long, device=runner.device)
        runner.extend_text(manager, torch.cat([rest, runner.ids(END_OF_TURN)]))

    def _last_is_unfed(self) -> bool:
        return len(self.ids) == self.sampling.max_new_tokens

    def final(self, **more: Any) -> dict[str, Any]:
        """Return the last event: `{type: "final", text, metrics}`."""
        total = time.perf_counter() - self.started
        metrics = {"ttft": self.ttft, "total_latency": total, "output_tokens": len(self.ids)} | more
        return {"type": "final", "text": self.text, "metrics": metrics}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def score_choices(branch: VideoSequence, question_ids: torch.Tensor, choices: list[torch.Tensor]) -> list[float]:
    """Return the log-probability of each choice as the answer to a question: the sum over its tokens.

    The question is prefilled once. Choices of one token each need nothing more; for longer ones the branch is repeated
    once for each choice, and all go through the model in one batch.

    Args:
        branch: is extended by the question, and spoiled.
        choices: ids [tokens] each, none empty.

    Raises:
        NonFiniteLogits: those that a choice is scored by hold NaN or plus infinity.
    """
    runner, manager = branch.runner, branch.manager
    asked = runner.extend_text(manager, question_ids)[0, -1]
    first = asked.double().log_softmax(-1)
    scores = torch.stack([first[choice[0]] for choice in choices])
    longest = max(len(choice) for choice in choices)
    if longest > 1:
        # What is padded on the right comes after a choice's last token, which does not see it.
        padded = torch.stack([torch.nn.functional.pad(choice, (0, longest - len(choice))) for choice in choices])
        manager.cache.batch_repeat_interleave(len(choices))
        logits = runner.extend_text(manager, padded[:, :-1], keep=0)
        chances = logits.double().log_softmax(-1).gather(-1, padded[:, 1:, None])[..., 0]
        lengths = torch.tensor([len(choice) for choice in choices], device=padded.device)
        is_real = torch.arange(1, longest, device=padded.device) < lengths[:, None]
        scores = scores + torch.where(is_real, chances, 0.0).sum(1)
    found: list[float] = scores.tolist()
    if any(map(math.isnan, found)):
        raise NonFiniteLogits(_name(asked.dtype))
    return found
