"""Whoever looks at a store on a terminal sees what it holds, what is wrong, and not more rows than can be read."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cache_store import StoreStats
from cache_store.reports import DatasetStats, ModelStats, PinInfo
from jobs.stats_view import Rates, model_name, render, warnings

NOW_S = 1_800_000_000.0
MODEL = ModelStats("longva 61e3f5cb float16 weights 99887766", "99887766", 900, 10**9)


def dataset(size=10**6, **fields):
    return DatasetStats(entries=size // 1000, bytes=size, **fields)


def store(datasets, **fields):
    sums = {
        name: sum(getattr(one, name) for one in datasets.values()) for name in ("entries", "bytes", "hits", "misses")
    }
    defaults = {"limit_bytes": None, "evictions": 0, "damaged": 0, "oldest": None, "newest": None}
    return StoreStats(**{**sums, **defaults, "datasets": datasets, **fields})


def seen(stats, *, width=80, **options):
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(render(stats, now_s=NOW_S, width=width, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 130, 200])
def test_no_line_is_wider_than_the_terminal(width):
    names = ["recv_all_20251027_170308", "episode_" + "x" * 150, "a\x1b[31mb", "日本語" * 20]
    datasets = {name: dataset(models=[MODEL, MODEL], hits=10**9, planned=57, planned_present=3) for name in names}
    out = seen(store(datasets, limit_bytes=10**12, evictions=10**9), width=width)
    assert max(len(line) for line in out.splitlines()) <= width
    assert "\x1b" not in out


def test_data_sets_are_shown_the_largest_first_and_the_rest_summed_up():
    datasets = {f"episode_{number:04d}": dataset(1000 * (1 + number)) for number in range(5000)}
    lines = seen(store(datasets)).splitlines()
    assert "episode_4999" in lines[3]
    assert len(lines) < 40
    assert "and 4,980 more" in seen(store(datasets))
    assert "episode_0000" in seen(store(datasets), most_rows=None)


def test_coverage_hit_rate_and_age_are_told_where_they_are_known():
    asked = dataset(planned=57, planned_present=57, hits=3, misses=1, last_use=NOW_S - 3 * 86400)
    out = seen(store({"known": asked, "unknown": dataset()}))
    assert "57/57" in out
    assert "75.0 %" in out
    assert "3d" in out
    assert "coverage" not in seen(store({"unknown": dataset()}))


def test_models_of_one_data_set_get_a_row_each():
    other = ModelStats(None, "aabbccdd", 5, 100)
    for width in (80, 200):
        out = seen(store({"Video-MME": dataset(models=[MODEL, other])}), width=width)
        assert "recipe aabbccdd" in out
        assert "longva 61e3f5cb" in out
    assert model_name(ModelStats(None, None, 1, 1)) == "model not recorded"


def test_an_empty_store_says_what_to_do():
    out = seen(store({}))
    assert "0 features, 0 B, no limit" in out
    assert "vlm-cache build" in out


def test_the_limits_and_what_exceeds_them():
    full = store({"a": dataset(2 * 2**20)}, limit_bytes=4 * 2**20, soft_limit_bytes=3 * 2**20)
    assert "2.00 MiB of 4.00 MiB (50.0 %), soft limit 3.00 MiB" in seen(full)
    above = store({"a": dataset(2 * 2**20)}, limit_bytes=2**20)
    assert any("1.00 MiB above its limit" in line for line in warnings(above))


@pytest.mark.parametrize(("evictions", "unread", "is_warned"), [(1200, 900, True), (1200, 500, False), (5, 5, False)])
def test_heavy_churn_is_warned_about(evictions, unread, is_warned):
    said = list(warnings(store({"a": dataset()}, evictions=evictions, evicted_unread=unread)))
    assert bool(said) == is_warned
    if is_warned:
        assert "900 of 1,200" in said[0]


def test_pins_say_what_they_keep_and_until_when():
    pins = [
        PinInfo("ab" * 16, [f"d{n}" for n in range(9)], 0, None, None, "evaluation"),
        PinInfo("cd" * 16, [], 120, None, "node17 4242", "reader's lease"),
    ]
    out = seen(store({"a": dataset()}, pins=pins), width=120)
    for words in ("abababab", "4 more", "removed", "evaluation", "120 single features", "process node17 4242 ends"):
        assert words in out


def test_rates_are_those_since_the_last_look():
    before, after = store({"a": dataset(10**6)}, evictions=10), store({"a": dataset(3 * 10**6)}, evictions=30)
    rates = Rates.between(before, after, 2.0)
    assert (rates.written, rates.evicted, rates.hits) == (1010.0, 10.0, 0.0)
    assert "1,010.0 written/s" in seen(after, rates=rates)
