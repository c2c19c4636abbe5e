"""Multiple-choice questions: the options and the right one, however a benchmark's annotations spell them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

# What a benchmark's answers are: the option's index from 0, its letter, or its own text. Where options are numbers or
# letters themselves, the same answer means another option by each of these rules.
AnswerIs: TypeAlias = Literal["index", "letter", "text"]

OPTION_COLUMNS = ("options", "candidates")
ANSWER_COLUMNS = ("answer", "correct_choice")  # the latter holds an index
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


def choices_of(values: Mapping[str, Any], *, answer_is: AnswerIs) -> Choices | None:
    """Return a row's options and answer; None if it has none, or none that can be told from each other.

    Options are a list, or the text of one (VLMEvalKit's TSV). An index may also be given as a letter; where a letter is
    expected, what is none is looked for among the options, with their letters or without.
    """
    listed = _listed(next((values[name] for name in OPTION_COLUMNS if name in values), None))
    if listed is None or not 2 <= len(listed) <= len(_LETTERS):
        return None
    options = _without_letters(listed)
    text = str(values.get("correct_choice" if answer_is == "index" else "answer", "")).strip()
    answer = _index(text, answer_is, listed, options)
    if answer is None or answer >= len(options) or len(set(options)) < len(options):
        return None
    return Choices(options, answer)


def _listed(value: Any) -> list[str] | None:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    return [str(option).strip() for option in value]


def _without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Take the letters off if every option carries its own."""
    labels = [_LABEL.match(option) for option in options]
    if all(label is not None and label[1] == letter for label, letter in zip(labels, _LETTERS, strict=False)):
        return tuple(option[label.end() :] for option, label in zip(options, labels, strict=True) if label is not None)
    return tuple(options)


def _index(text: str, answer_is: AnswerIs, listed: Sequence[str], options: Sequence[str]) -> int | None:
    letter = re.fullmatch(r"\(?([A-Za-z])[.):]?", text)
    if letter and answer_is != "text":
        return _LETTERS.index(letter[1].upper())
    spellings = [[str(index) for index in range(len(options))]] if answer_is == "index" else [listed, options]
    return next((known.index(text) for known in spellings if text in known), None)
