"""The page of a store's statistics is one file that loads nothing and shows every plot, whatever the store holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from cache_store import EntryInfo
from cache_store.reports import ModelStats, PinInfo
from jobs.plots import elided, level
from jobs.stats_page import bytes_by_age, stats_page
from tests.jobs.test_stats_view import MODEL, NOW_S, dataset, store


class Page(HTMLParser):
    """What a browser would take from a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.plots, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        fields = dict(attrs)
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[:1] != "#"]
        self.ids += [fields["id"]] if "id" in fields else []
        self.plots += [fields["aria-label"]] if tag == "svg" else []


def entry(age_s, size=10):
    return EntryInfo("a_vlm0.pt", size, NOW_S - age_s, NOW_S - age_s, None)


def paged(stats, entries=()):
    return stats_page(stats, entries, title="Feature store /cache", now_s=NOW_S)


def test_a_full_store_shows_size_data_sets_ages_and_reads():
    datasets = {f"episode_{n}": dataset(models=[MODEL], hits=n, misses=1) for n in range(30)}
    stats = store(datasets, limit_bytes=10**9, pins=[PinInfo("ab" * 16, ["episode_*"], 0, NOW_S, None, "why")])
    text = paged(stats, [entry(5), entry(10**6)])
    page = Page(text)
    assert page.links == []
    assert "script" not in page.tags
    assert len(page.plots) == 4
    assert all(page.plots)
    assert len(set(page.ids)) == len(page.ids)
    assert "the other 10 hold" in text
    assert "#010203" not in text
    assert "currentColor" in text


def test_hostile_names_are_only_text():
    name = "<script>alert(1)</script>$x$&\x1b" + "y" * 99
    text = paged(store({name: dataset(models=[ModelStats("<i>", None, 1, 10**6)], hits=1)}), [entry(5)])
    assert "script" not in Page(text).tags
    assert "<i>" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_any_number_of_data_sets_makes_a_page_of_bounded_size(count):
    datasets = {f"episode_{n:05d}": dataset(models=[MODEL]) for n in range(count)}
    text = paged(store(datasets), [entry(5)] if count else [])
    assert len(text) < 1_000_000
    assert len(Page(text).plots) == (3 if count else 0)


def test_equal_stores_give_equal_pages():
    stats = store({"a": dataset(models=[MODEL], hits=3)})
    assert paged(stats, [entry(5)]) == paged(stats, [entry(5)])


def test_entries_are_counted_by_the_time_since_their_last_use():
    day = 86400
    sums = bytes_by_age([entry(-5, 1), entry(3599, 2), entry(2 * day, 4), entry(400 * day, 8)], NOW_S)
    assert (sums[0], sums[3], sums[-1], sum(sums)) == (3, 4, 8, 15)


def test_a_size_above_the_limit_has_the_colour_of_a_warning():
    calm, loud = (level(size, {"limit": 2.0}, title="t", unit="GiB", alt="a") for size in (1.0, 3.0))
    fills = [set(re.findall(r"fill: (#[0-9a-f]{6})", svg)) for svg in (calm, loud)]
    assert fills[0] != fills[1]


def test_long_names_keep_both_ends():
    assert elided("short") == "short"
    assert elided("start" + "x" * 99 + "end_7").startswith("start")
    assert elided("start" + "x" * 99 + "end_7").endswith("end_7")
