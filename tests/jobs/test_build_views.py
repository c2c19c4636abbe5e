"""The live view fits the terminal, and its one line says where the build is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.build_views import headline, print_report, render
from jobs.sizes import format_number, format_rate
from pipeline.failures import UnitFailure
from pipeline.lanes import BuildReport, LaneProgress, Progress


def lane(number, **changes):
    facts = {
        "state": "recovering",
        "device": "cuda:0",
        "done": 123456,
        "decoders": 4,
        "decoded_per_s": 12.3,
        "encoded_per_s": 2.0,
        "written_per_s": 123.4 * 2**20,
        "busy_share": 0.97,
        "queue_bytes": 123 * 2**20,
        "restarts": 2,
    }
    return LaneProgress(f"lane {number}", **{**facts, **changes})


def moment(lanes, **changes):
    failure = UnitFailure("a" * 70, "decode", "broken\x1b[31m.mp4: " + "not decodable " * 20)
    facts = {"todo": 1_000_000, "done": 500, "skipped": 20, "failed": 1, "bytes_written": 2**40, "seconds": 500.0}
    return Progress(**{**facts, "seconds_left": 3600.0, "lanes": tuple(lanes), "last_failure": failure, **changes})


def drawn(progress, *, width, most_rows=20):
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    console.print(
        render("folder videos with longva small \x1b]0;x\x07" + "y" * 200, progress, width=width, most_rows=most_rows)
    )
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "has_device"), [(80, False), (110, True), (200, True)])
def test_every_column_fits_the_terminal(width, has_device):
    lines = drawn(moment([lane(0), lane(12)]), width=width)
    assert max(map(len, lines)) <= width
    (heading,) = (line.split() for line in lines if line.startswith("lane ") and "built" in line)
    assert {"state", "built", "decode/s", "encode/s", "written/s", "queue", "busy"} <= set(heading)
    assert ("device" in heading) == ("restarts" in heading) == has_device
    (row,) = (line for line in lines if line.startswith("lane 12"))
    for word in ("recovering", "123456", "12.3", "2.00", "123 MiB", "97%"):
        assert word in row
    assert any("busy: share of the last 10 s" in line for line in lines)
    assert not any("\x1b" in line or "\x07" in line for line in lines)
    assert sum("last failure" in line for line in lines) == 1


def test_a_short_terminal_shows_the_other_lanes_together():
    lines = drawn(moment([lane(number) for number in range(64)]), width=80, most_rows=5)
    assert sum(line.startswith("lane ") for line in lines) == 1 + 4
    (rest,) = (line for line in lines if line.startswith("60 more"))
    assert str(60 * 123456) in rest
    assert "97%" in rest


def test_the_line_has_the_pace_of_now_and_the_time_left():
    words = headline(moment([lane(0), lane(1, restarts=0)]))
    assert words == "500/1000000 built, 20 skipped, 1 failed, 4.00/s, 1.00 TiB, 8m 20s, about 1h 00m left, 2 restarts"


def test_one_restart_is_no_plural():
    assert headline(moment([lane(0, restarts=1)])).endswith(", 1 restart")


def test_at_the_end_it_has_the_pace_of_the_whole_and_no_time_left():
    words = headline(moment([lane(0)], todo=501, seconds_left=0.0))
    assert "1.00/s" in words
    assert "left" not in words


def test_while_no_pace_is_known_no_time_is_told():
    assert "left" not in headline(moment([lane(0, encoded_per_s=0.0)], seconds_left=None))


def test_rates_are_told_in_a_unit_of_time_that_suits_them():
    assert [format_rate(rate) for rate in (1234.5, 12.34, 0.5, 0.02, 0.001, 0.0)] == [
        "1,234/s",
        "12.3/s",
        "0.50/s",
        "1.20/min",
        "3.60/h",
        "0.00/s",
    ]
    assert [format_number(number) for number in (0.004, 9.999, 99.4)] == ["0.00", "10.00", "99.4"]


def test_a_report_obeys_no_name_and_its_command_can_be_pasted(capsys):
    failure = UnitFailure("[red]a\x1b[2J", "decode", "b\udcff\x07.mp4: not decodable")
    report = BuildReport(failed=[failure], ignored=[("c\x1b]0;x\n.txt", "hidden")], stopped="d\x1b[31m is full")
    print_report(report, Path("/runs/of mine"))
    said = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\udcff"} & set(said)
    assert "[red]a\\x1b[2J" in said
    assert "vlm-cache retry-failed '/runs/of mine'\n" in said
