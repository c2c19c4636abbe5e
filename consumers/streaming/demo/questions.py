"""The questions of one tab: one at a time, each holding the stream while it is answered."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from consumers.streaming.demo.records import Exchange
from consumers.streaming.demo.refusal import DemoRefused, told
from consumers.streaming.prompts import checked_text
from consumers.streaming.qwen_wrapper import QwenInferenceWrapper

MOST_KEPT = 20  # exchanges that a page shows


class Questions:
    """What was asked of one stream. `changed` is the session's lock and condition, told when an answer ends."""

    def __init__(self, backend: QwenInferenceWrapper, changed: threading.Condition, max_new_tokens: int) -> None:
        self._backend, self._changed, self._max_new_tokens = backend, changed, max_new_tokens
        self._current: Exchange | None = None  # as it was asked
        self._asked = 0
        self.exchanges: tuple[Exchange, ...] = ()  # the latest first

    @property
    def is_asking(self) -> bool:
        """Tell whether a question holds the stream."""
        return self._current is not None

    def stop(self) -> None:
        """End the answer at hand after its next token; the stream need not wait for it."""
        with self._changed:
            self._current = None
            self._changed.notify_all()

    def forget(self) -> None:
        """Drop all exchanges; an answer that still is being made will not be kept."""
        self.exchanges = ()

    def ask(self, question: str, settled: Callable[[], float]) -> Iterator[tuple[Exchange, ...]]:
        """Yield the exchanges again and again while an answer grows.

        `settled` waits, with the lock held, until no chunk is half-way, and returns the stream's time.

        Raises:
            DemoRefused: the question is empty or holds what no question may, or another one is being answered.
        """
        return self._answered(self._opened(question, settled), self._tokens)

    def choose(
        self, question: str, choices: Sequence[str], settled: Callable[[], float]
    ) -> Iterator[tuple[Exchange, ...]]:
        """Yield the exchanges before and after a multiple choice; see `ask`.

        Raises:
            DemoRefused: as `ask`, or there are fewer than two different choices.
        """
        wanted = [choice.strip() for choice in choices if choice.strip()]
        if question.strip() and len(set(wanted)) < max(2, len(wanted)):
            raise DemoRefused("Write at least two different choices, each on a line of its own.")
        return self._answered(self._opened(question, settled), lambda exchange: self._shares(exchange, wanted))

    def _opened(self, question: str, settled: Callable[[], float]) -> Exchange:
        if not question.strip():
            raise DemoRefused("Write a question first.")
        try:
            checked_text(question, "the question")
        except ValueError as exc:
            raise DemoRefused(str(exc)) from exc
        with self._changed:
            if self._current is not None:
                raise DemoRefused("One question at a time: this one is not yet answered.")
            self._asked += 1
            exchange = self._current = Exchange(self._asked, question.strip(), 0.0)
            time_s = settled()
            if self._current is not exchange:
                raise DemoRefused("The question was ended while it waited for the chunk at hand.")
            self._current = exchange = replace(exchange, time_s=time_s)
            self.exchanges = (exchange, *self.exchanges)[:MOST_KEPT]
            return exchange

    def _answered(
        self, asked: Exchange, events: Callable[[Exchange], Iterator[Exchange]]
    ) -> Iterator[tuple[Exchange, ...]]:
        grown, outcome = asked, "stopped"
        try:
            yield self.exchanges
            for grown in events(asked):
                if self._current is not asked:
                    break
                self._put(grown)
                yield self.exchanges
            else:
                outcome = "done"
        except Exception as exc:
            outcome, message = "done", told(exc)
            if message is None:
                logging.getLogger(__name__).exception("a question of the demo failed")
                message = "This could not be answered; the server's log says why."
            grown = replace(grown, error=message)
        finally:
            with self._changed:
                self._put(replace(grown, outcome=outcome))
                if self._current is asked:
                    self._current = None
                    self._changed.notify_all()
        yield self.exchanges

    def _put(self, grown: Exchange) -> None:
        """Replace an exchange by what became of it, unless it was forgotten."""
        with self._changed:
            self.exchanges = tuple(grown if old.number == grown.number else old for old in self.exchanges)

    def _tokens(self, asked: Exchange) -> Iterator[Exchange]:
        with closing(self._backend.engine.ask_stream(asked.question, self._max_new_tokens)) as events:  # type: ignore[type-var]
            for event in events:
                if event["type"] == "token":
                    yield replace(asked, text=event["text"], ttft_s=event["ttft"])
                else:
                    metrics = event["metrics"]
                    times = {"ttft_s": metrics["ttft"], "total_s": metrics["total_latency"]}
                    yield replace(asked, text=event["text"], **times)

    def _shares(self, asked: Exchange, choices: list[str]) -> Iterator[Exchange]:
        best, result = self._backend.ask_choice(asked.question, choices)
        scores = result["scores"]
        weights = {choice: math.exp(score - scores[best]) for choice, score in scores.items()}
        total = sum(weights.values())
        shares = tuple((choice, weight / total) for choice, weight in weights.items())
        yield replace(asked, text=best, shares=shares, total_s=result["total_latency"])
