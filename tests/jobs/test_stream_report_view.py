"""Reports are read as they were measured, whatever a model answered."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from consumers.streaming.reports import Bars, Curves, Report, Table
from jobs.stream_report_page import write_report
from jobs.stream_report_view import cell, for_terminal, heading
from tests.jobs.test_stats_page import Page

HOSTILE = "<script>alert(1)</script> | *a* [b](c)\n# d\x1b"


def report(answer=HOSTILE, **more):
    return Report(
        "delayed",
        "Made up",
        {"video": "a.mp4", "model": "m_x", "dtype": "float32", "device": "cpu", "max_pixels": 50176},
        [
            Table("Figures", [{"ttft_s": 0.25, "cache_bytes": 2048}, {"ttft_s": None, "end": "soon"}], "a note"),
            Table("Answers", [{"step": 1, "answer": answer}]),
            Table("Empty", []),
        ],
        [
            Bars("Bars", "seconds", {"a": 1.0, "b": 2.5}),
            Curves("Curves", "frames", "GB", {"one": [(1, 2.0)], "none": []}),
        ],
        **more,
    )


@pytest.mark.parametrize(
    ("name", "value", "words", "shown"),
    [
        ("ttft_s", 0.0123456, "TTFT (s)", "0.0123"),
        ("frames_per_s", 1234.5, "frames/s", "1,234"),
        ("cache_bytes", 3 * 2**30, "cache", "3.00 GiB"),
        ("gb_per_megapixel", 0.0001234, "GB per megapixel", "0.000123"),
        ("chunks", 12345, "chunks", "12,345"),
        ("unchanged", True, "unchanged", "yes"),
        ("unchanged", False, "unchanged", "no"),
        ("total_s", None, "total (s)", ""),
        ("answer", "a\nb", "answer", "a\\nb"),
    ],
)
def test_names_carry_their_unit_and_values_three_digits(name, value, words, shown):
    assert (heading(name), cell(name, value)) == (words, shown)


def test_what_a_model_answered_is_only_text(tmp_path):
    write_report(report(failures=[HOSTILE], warnings=[HOSTILE]), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert page.links == []
    assert page.plots == ["Bars", "Curves"]
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text.replace("\\<", "")
    assert "\x1b" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert row.replace("\\|", "").count("|") == 3
    assert text.count("\n# ") == 0
    assert "**Failed:**" in text


@pytest.mark.parametrize("width", [60, 160])
def test_a_terminal_shows_every_figure_and_failure(width):
    console = Console(width=width, record=True, file=StringIO())
    console.print(for_terminal(report(answer="right", failures=["round 1: no"], warnings=["look"])))
    shown = console.export_text()
    for text in ("0.25", "2.00", "KiB", "soon", "right", "failed: round 1: no", "look at: look", "a note"):
        assert text in shown


def test_equal_reports_give_equal_files(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_report(report(), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_a_folder_keeps_no_plots_of_the_report_before(tmp_path):
    write_report(report(), tmp_path)
    (tmp_path / "plot-notes.svg").write_text("somebody's own")
    one_plot = replace(report(), plots=report().plots[:1])
    assert write_report(one_plot, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("plot-*")) == ["plot-1.svg", "plot-notes.svg"]


def test_a_plot_of_before_that_cannot_go_is_told(tmp_path, capsys):
    (tmp_path / "plot-3.svg").mkdir()
    assert not write_report(report(), tmp_path)
    assert "the report is not whole: " in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()
