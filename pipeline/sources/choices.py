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
EACH_OPTION_COLUMNS = tuple(f"option{index}" for index in range(5))  # LongVideoBench's parquet; "N/A" fills up
ANSWER_COLUMNS = ("answer", "correct_choice")  # the latter holds an index
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\(?([A-Z])[.):](?![A-Z]\.)\s*")  # no label in "A.D. 1066"
_LABEL_IN_QUESTION = re.compile(r"(?:\(?([A-Z])[.):]|(?:Caption|Option|Sentence) ([A-Z1-9]):)\s*\S")


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

    Options are a list, or the text of one (VLMEvalKit's TSV), or a column each. An index may also be given as a letter;
    where a letter is expected, what is none is looked for among the options, with their letters or without. Where a
    text is expected, the question may list its options itself, in its last lines; then the answer may be a letter, too.
    Other options beside those lines come first: what the question lists may be what they are about.
    """
    answer = str(values.get("correct_choice" if answer_is == "index" else "answer", "")).strip()
    if answer_is == "index":  # a column with gaps is one of floats
        answer = re.sub(r"\.0+$", "", answer)
    columns = (_listed(values.get(name)) for name in OPTION_COLUMNS)
    listed = next(filter(None, columns), None) or _one_by_one(values)
    by_columns = _choices(listed, answer, answer_is)
    if answer_is != "text":
        return by_columns
    in_question = split_question(str(values.get("question", "")))[1]
    by_question = _choices(in_question, answer, "letter")
    is_repeated = _without_letters(in_question) == _without_letters(listed)
    return by_question or by_columns if is_repeated else by_columns or by_question


def without_options(question: str, choices: Choices) -> str:
    """Return the question without its last lines, where these list the very options."""
    text, listed = split_question(question)
    return text if _without_letters(listed) == choices.options else question


def split_question(question: str) -> tuple[str, list[str]]:
    """Return the question and the options that it lists below itself, one a line, each with its letter or number.

    Without such lines the question is returned as it is, and no options.
    """
    lines = [line.strip() for line in question.split("\n") if line.strip()]
    matches = [_LABEL_IN_QUESTION.match(line) for line in lines]
    labels = [(match[1] or match[2]) if match else "" for match in matches]
    first = next((place for place in range(len(lines) - 1, 0, -1) if labels[place] in ("A", "1")), len(lines))
    found = labels[first:]
    if len(found) < 2 or not all(found) or "".join(found) not in f"{_LETTERS} 123456789":
        return question, []
    return "\n".join(lines[:first]), lines[first:]


def _one_by_one(values: Mapping[str, Any]) -> list[str]:
    each = [str(values.get(name, "N/A")).strip() for name in EACH_OPTION_COLUMNS]
    return each[: each.index("N/A")] if "N/A" in each else each


def _choices(listed: Sequence[str], text: str, answer_is: AnswerIs) -> Choices | None:
    if not 2 <= len(listed) <= len(_LETTERS):
        return None
    options = _without_letters(listed)
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
