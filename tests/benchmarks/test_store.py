"""The store's benchmark: its arithmetic, its page, and that it runs; nothing here judges a time."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import deque

import pytest
import torch

from benchmarks.store import __main__ as command
from benchmarks.store import document, peers, timing
from benchmarks.store.eviction import bookkeeping_us
from benchmarks.store.features import bytes_of
from benchmarks.store.old_scripts import OldScripts
from benchmarks.store.report import Line, Row, from_json, lines_of, not_measured, rate_lines, table, to_json
from benchmarks.store.rescan import enforce_limit
from benchmarks.store.small_reads import check_equal
from benchmarks.store.timing import Contestant

FEATURE = torch.arange(6, dtype=torch.float16).reshape(1, 1, 6)
MACHINE = {"date": "2026-01-02", "processor": "abacus"}
ROWS = [
    Row(
        "one",
        "a row",
        "µs",
        [
            Line("base", 2.0, 1.0, 1.0, 1.0),
            Line("put", 2.5, 1.25, 1.1, 1.4, most_ratio=1.3),
            not_measured("peer | with a bar", "not installed"),
        ],
        ["A remark."],
    )
]


def test_contestants_take_turns_and_the_first_round_is_not_kept():
    calls = []
    contestants = [
        Contestant(name, 2, lambda number, name=name: calls.append((name, number))) for name in ("base", "store")
    ]
    times_s = timing.interleaved_s(contestants, rounds=3)
    assert calls == [(name, number) for number in range(4) for name in ("base", "store")]
    assert {name: len(of_one) for name, of_one in times_s.items()} == {"base": 3, "store": 3}


def test_a_time_is_that_of_one_operation_and_preparing_is_not_timed(monkeypatch):
    ticks = deque([0.0, 6.0, 10.0, 13.0])
    monkeypatch.setattr(timing.time, "perf_counter", ticks.popleft)
    contestant = Contestant("base", 3, lambda _: None, prepare=lambda number: number)
    assert timing.interleaved_s([contestant], rounds=1) == {"base": [1.0]}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    contestants = [Contestant("base", 1, print), Contestant("store", 1, print, most_ratio=2.5)]
    # The machine was ten times slower in the last round: the ratio of that round is as good as any.
    times_s = {"base": [1e-6, 2e-6, 10e-6], "store": [2e-6, 6e-6, 25e-6]}
    base, store = lines_of(contestants, times_s, base="base", unit_s=1e-6)
    assert (base.value, base.ratio) == (2.0, 1.0)
    assert (store.value, store.ratio, store.ratio_low, store.ratio_high) == (6.0, 2.5, 2.0, 3.0)
    assert store.verdict == "pass"


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (Line("at the target", 1.0, 1.3, most_ratio=1.3), "pass"),
        (Line("above it", 1.0, 1.31, most_ratio=1.3), "fail"),
        (Line("a value above it", 5.01, most_value=5.0), "fail"),
        (Line("one of two missed", 4.0, 2.0, most_ratio=1.0, most_value=5.0), "fail"),
        (Line("a share at its least", 1.0, 0.95, least_ratio=0.95), "pass"),
        (Line("a share below it", 1.0, 0.949, least_ratio=0.95), "fail"),
        (Line("a rate below its least", 2499.0, least_value=2500.0), "fail"),
        (Line("no target", 1.0, 9.0), ""),
        (Line("not measured", None, most_ratio=1.3), ""),
    ],
)
def test_a_verdict_asks_for_every_target(line, verdict):
    assert line.verdict == verdict


def test_a_rate_is_compared_with_the_base_of_its_round():
    base, build = rate_lines(
        {"base": [10.0, 20.0, 4.0], "build": [9.0, 16.0, 3.8]}, base="base", least_ratios={"build": 0.95}
    )
    assert (base.ratio, base.verdict) == (1.0, "")
    assert (build.value, build.ratio, build.ratio_low, build.ratio_high) == (9.0, 0.9, 0.8, 0.95)
    assert build.verdict == "fail"


def test_bookkeeping_is_what_puts_and_unlinks_leave_over():
    found = {"puts": 100, "free_s": 5e-3, "full_s": 9e-3, "unlink_s": 1e-3}
    # 4000 us more for 200 evictions, of which the unlink itself is 10 us each.
    assert bookkeeping_us({**found, "evictions": 200}) == pytest.approx(10.0)
    assert bookkeeping_us({**found, "evictions": 0}) is None


def test_the_table_names_what_was_not_measured():
    text = table(ROWS[0])
    assert "not installed" in text
    assert "1.10 to 1.40" in text
    assert "ratio <= 1.30" in text
    assert text.endswith("A remark.")


def test_rows_survive_json():
    assert from_json(json.loads(json.dumps(to_json(ROWS, MACHINE, {})))) == ROWS


def test_recording_rewrites_what_is_between_the_marks_alone(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / document.PAGE
    begin, end = document.marks("bench-store")
    page.write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter.\n")
    for _ in range(2):
        document.record(to_json(ROWS, MACHINE, {"quick": False}), tmp_path, name="store")
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{begin}\n")
    assert text.endswith(f"{end}\n\nAfter.\n")
    assert "old" not in text
    assert "| **put** | 2.50 |" in text
    assert "peer \\| with a bar" in text
    assert (tmp_path / "benchmarks-store.svg").read_text().lstrip().startswith("<?xml")


def test_a_page_without_its_marks_is_refused():
    begin, end = document.marks("bench-store")
    with pytest.raises(ValueError, match="in this order"):
        document.replaced(f"{end} {begin}", "figures", target="bench-store")


def test_the_old_scripts_delete_the_oldest_files_over_their_limit(tmp_path):
    old = OldScripts(tmp_path)
    for index in range(4):
        old.write(index, FEATURE)
    size = old.path(0).stat().st_size
    for index in range(4):
        os.utime(old.path(index), (index, index))
    assert enforce_limit(tmp_path, 2 * size) == 4 * size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.pt", "3.pt"]
    check_equal("old", old.read(3), FEATURE)
    assert old.read(0) is None


@pytest.mark.parametrize("kind", [kind for kind in peers.PEERS if kind.can_read], ids=lambda kind: kind.module)
def test_every_peer_returns_what_it_was_given(kind, tmp_path):
    if not kind.is_installed():
        pytest.skip(f"{kind.module} is not installed; make bench-store installs it")
    peer = kind(tmp_path, FEATURE)
    for batch in (range(3), range(3, 5)):
        for index in batch:
            peer.write(index, FEATURE + index)
        peer.finish()
    for index in (4, 0, 3):
        check_equal(kind.name, peer.read(index), FEATURE + index)
    peer.close()


def test_a_reader_of_other_bits_is_not_timed():
    for wrong in (None, FEATURE + 1, FEATURE.float(), FEATURE.reshape(6)):
        with pytest.raises(RuntimeError, match="does not return what was written"):
            check_equal("reader", wrong, FEATURE)
    assert bytes_of(FEATURE) == FEATURE.numpy().tobytes()


@pytest.mark.slow
def test_a_quick_run_measures_every_row_and_leaves_nothing_behind(tmp_path, capsys):
    figures, folder = tmp_path / "figures.json", tmp_path / "disk"
    folder.mkdir()
    options = ["--quick", "--json", str(figures), "--folder", str(folder)]
    if importlib.util.find_spec("matplotlib"):
        options += ["--plot", str(tmp_path / "ratios.svg")]
    assert command.main(options) == 0
    rows = from_json(json.loads(figures.read_text()))
    assert [row.id for row in rows] == list(command.ROWS)
    assert all(line.value is not None or line.note for row in rows for line in row.lines)
    assert all(any(line.most_ratio or line.most_value for line in row.lines) for row in rows)
    assert "packed, FeatureStore.get_batch" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_only_the_rows_asked_for_are_measured(capsys):
    assert command.main(["--quick", "--only", "list-memory", "--entries", "60"]) == 0
    out = capsys.readouterr().out
    assert "questions about 60 entries: peak memory" in out
    assert "time" not in out


def test_a_page_of_some_rows_only_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(["--quick", "--only", "list", "--record"])
    assert refused.value.code == 2
    assert "without --only" in capsys.readouterr().err
