"""Events come to the disk while they happen, and whatever a killed build left of them can be read."""

from __future__ import annotations

import json

import pytest

from pipeline import run_events
from pipeline.run_events import RunEvents, last_time_s, read_events


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, which stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(run_events.time, "monotonic", lambda: now[0])
    return now


def writing(path, **options):
    def write(lines):
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(lines)

    return RunEvents(write, **options)


def test_times_count_from_the_start_and_the_first_line_says_what_the_build_is(path, clock):
    events = writing(path, about={"host": "here"})
    clock[0] += 5
    events.start(todo=3)
    clock[0] += 1.25
    events.note("unit", {"key": "a"})
    events.flush()
    first, second = read_events(path)
    assert (first.name, first.at_s, first.fields["todo"], first.fields["host"]) == ("start", 0.0, 3, "here")
    assert (second.name, second.at_s, second.fields["key"]) == ("unit", 1.25, "a")
    assert last_time_s(path) == 1.25


def test_what_is_noted_is_written_within_a_second_if_somebody_asks(clock):
    written = []
    events = RunEvents(written.append)
    events.note("unit", {"key": "a"})
    events.flush_if_due()
    assert written == []
    clock[0] += 0.75
    events.flush_if_due()
    assert len(written) == 1
    assert written[0].endswith("}\n")
    events.flush()
    assert len(written) == 1


def test_no_more_than_a_bounded_number_of_lines_waits_in_memory():
    written = []
    events = RunEvents(written.append)
    for number in range(3 * run_events.MOST_WAITING):
        events.note("unit", {"key": str(number)})
    assert sum(lines.count("\n") for lines in written) == 3 * run_events.MOST_WAITING
    assert len(written) == 3


def test_a_torn_last_line_is_passed_over_at_any_length(path):
    events = writing(path)
    events.start(todo=2)
    events.note("unit", {"key": "ü"})
    events.flush()
    whole = path.read_bytes()
    begin_of_last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(begin_of_last, len(whole) - 1):
        path.write_bytes(whole[:length])
        unreadable = []
        names = [event.name for event in read_events(path, on_unreadable=lambda: unreadable.append(1))]  # noqa: B023
        assert (names, unreadable) == (["start"], [])


@pytest.mark.parametrize(
    "line",
    ["no json", "[]", "{}", '{"event": "unit"}', '{"event": "unit", "t": NaN}', '{"event": "unit", "t": -1}', "\0"],
)
def test_a_line_that_is_no_event_is_counted_and_the_rest_is_read(path, line):
    path.write_text(f'{line}\n\n{{"event": "end", "t": 2}}\n')
    unreadable = []
    events = list(read_events(path, on_unreadable=lambda: unreadable.append(1)))
    assert [event.name for event in events] == ["end"]
    assert len(unreadable) == 1
    assert last_time_s(path) == 2


def test_a_text_with_another_end_of_line_is_within_its_line(path):
    path.write_text('{"event": "end", "t": 2, "reason": "a\u2028b"}\n', encoding="utf-8")
    assert [event.fields["reason"] for event in read_events(path)] == ["a\u2028b"]
    assert last_time_s(path) == 2


def test_the_last_time_is_found_at_the_end_of_a_long_file(path):
    path.write_text(
        "".join(json.dumps({"event": "unit", "t": n, "key": "x" * 50}) + "\n" for n in range(5000)) + '{"ev'
    )
    assert last_time_s(path) == 4999


def test_names_that_are_no_unicode_come_back_as_they_were(path):
    events = writing(path)
    events.note("unit", {"key": "caf\udce9"})
    events.flush()
    assert [event.fields["key"] for event in read_events(path)] == ["caf\udce9"]
