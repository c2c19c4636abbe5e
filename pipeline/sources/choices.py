"""Multiple-choice questions: the options and the right one, however a benchmark's annotations spell them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPTION_COLUMNS = ("options", "candidates")
ANSWER_COLUMNS = ("answer", "correct_choice")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\(?([A-Z])[.):]\s*")


@dataclass(frozen=True)
class Choices:
    """The options of a question, without their letters, and the index of the right one."""

    options: tuple[str, ...]
    answer: int

    @property
    def letters(self) -> str:
        """The options' letters, from A on."""
        return _LETTERS[: len(self.options)]


def choices_of(values: Mapping[str, Any]) -> Choices | None:
    """Return a row's options and answer; None if it has none, or none that can be told from each other.

    Options are a list, or the text of one (VLMEvalKit's TSV). The answer is an index, a letter, an option, or an option
    with its letter.
    """
    listed = _listed(next((values[name] for name in OPTION_COLUMNS if name in values), None))
    if listed is None or not 2 <= len(listed) <= len(_LETTERS):
        return None
    options = _without_letters(listed)
    answer = _index(next((values[name] for name in ANSWER_COLUMNS if name in values), None), listed, options)
    return None if answer is None or len(set(options)) < len(options) else Choices(options, answer)


def _listed(value: Any) -> list[str] | None:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    return [str(option).strip() for option in value]


def _without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Take the letters off if every option carries its own."""
    labels = [_LABEL.match(option) for option in options]
    if all(label is not None and label[1] == letter for label, letter in zip(labels, _LETTERS, strict=False)):
        return tuple(option[label.end() :] for option, label in zip(options, labels, strict=True) if label is not None)
    return tuple(options)


def _index(answer: Any, listed: Sequence[str], options: Sequence[str]) -> int | None:
    if answer is None:
        return None
    text = str(answer).strip()
    # An option's own text first: "A" may be the third of them.
    for known in (options, listed):
        if text in known:
            return known.index(text)
    letter = re.fullmatch(r"\(?([A-Za-z])[.):]?", text)
    found = int(text) if text.isdecimal() else _LETTERS.find(letter[1].upper()) if letter else -1
    return found if 0 <= found < len(options) else None
