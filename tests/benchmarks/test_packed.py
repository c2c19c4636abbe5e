"""The benchmark of packed features compares equal things, and a large store is packed and read in bounded memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.consumers.loading import Reads, check_epoch
from benchmarks.packed import __main__ as command
from benchmarks.packed import formats, million, rates, reading, remote
from benchmarks.packed.scale import QUICK
from benchmarks.store.document import PAGE, marks, record
from benchmarks.store.features import small_features
from benchmarks.store.keys import step_key
from benchmarks.store.peers import WebDatasetShards, filled_peer
from benchmarks.store.report import from_json
from benchmarks.store.small_reads import check_equal, filled_store
from benchmarks.store.timing import Contestant
from cache_store import FeatureStore

DOCS = Path(__file__).parents[2] / "docs"
FEATURES = small_features(10, 6)


@pytest.mark.slow
def test_a_quick_run_measures_its_rows_and_can_be_recorded(tmp_path, capsys):
    figures, folder = tmp_path / "figures.json", tmp_path / "disk"
    folder.mkdir()
    # All but the last, which is the matter of the tests below.
    rows = [option for row in list(command.ROWS)[:-1] for option in ("--only", row)]
    assert command.main(["--quick", *rows, "--json", str(figures), "--folder", str(folder)]) == 0
    fields = json.loads(figures.read_text())
    rows = from_json(fields)
    assert [row.id for row in rows] == [
        *["pack", "unpack", "packed-get", "packed-batch", "load-0", "load-1"],
        *["remote-cold", "remote-warm"],
    ]
    assert all(line.value is not None or line.note for row in rows for line in row.lines)
    batch = next(row for row in rows if row.id == "packed-batch")
    assert [line.most_ratio for line in batch.lines[1:3]] == [1.5, 1.5]
    assert "FeatureStore(s3://...).get, cold tier" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    (tmp_path / PAGE).write_text((DOCS / PAGE).read_text())
    record(fields, tmp_path, name="pack")
    page = (tmp_path / PAGE).read_text()
    first, last = marks("bench-pack")
    assert "| boto3 get_object |" in page[page.index(first) : page.index(last)]
    assert (tmp_path / "benchmarks-pack.svg").stat().st_size > 1_000


@pytest.mark.parametrize("kind", formats.FORMATS, ids=lambda kind: kind.module)
def test_every_format_returns_what_it_was_given(kind, tmp_path):
    if not kind.is_installed():
        pytest.skip(f"{kind.module} is not installed; make bench-pack installs it")
    peer = filled_peer(kind, tmp_path, FEATURES, parts=3)
    if kind is WebDatasetShards:
        found = torch.stack(list(formats.WebDatasetStream(tmp_path / kind.module, shuffle=False)))
        check_equal(kind.name, found, FEATURES)
        shuffled = formats.WebDatasetStream(tmp_path / kind.module, shuffle=True)
        check_epoch(kind.name, DataLoader(shuffled, batch_size=4), FEATURES)
        return
    for index in (9, 0, 4):
        check_equal(kind.name, peer.read(index), FEATURES[index])
    if isinstance(peer, formats.LanceTable):
        check_equal(kind.name, peer.read_many([7, 2, 7]), FEATURES[[7, 2, 7]])
        loader = DataLoader(peer.rows(), batch_size=4, shuffle=True, collate_fn=formats.stacked)
        check_epoch(kind.name, loader, FEATURES)
    peer.close()


def test_an_epoch_that_lacks_or_repeats_a_feature_is_not_timed():
    for indices in (range(9), [*range(9), 8]):
        of = list(indices)
        data = Reads(lambda index, of=of: FEATURES[of[index]], len(of))
        with pytest.raises(RuntimeError, match="every feature once"):
            check_epoch("reader", DataLoader(data, batch_size=4), FEATURES)
    backwards = Reads(lambda index: FEATURES[9 - index], 10)
    with pytest.raises(RuntimeError, match="does not return what was written"):
        check_epoch("reader", DataLoader(backwards, batch_size=4), FEATURES)


def test_a_batch_of_other_bits_is_not_timed():
    with pytest.raises(RuntimeError, match="does not return what was written"):
        reading.batches("reader", lambda indices, out: out.copy_(FEATURES[indices] + 1), [3, 1], FEATURES, 2)


@pytest.mark.parametrize("broken", ["pack", "unpack"])
def test_a_packing_that_changes_a_bit_is_not_timed(tmp_path, broken):
    with filled_store(tmp_path / "store", FEATURES) as store:
        files = sorted(store.root.glob("*.pt"))
        contents = [file.read_bytes() for file in files]
        rates.check(store, FEATURES, files, contents)
        if broken == "pack":
            with pytest.raises(RuntimeError, match="does not return what was written"):
                rates.check(store, FEATURES + 1, files, contents)
        else:
            with pytest.raises(RuntimeError, match="other files"):
                rates.check(store, FEATURES, files, [*contents[:-1], b"other bytes"])


def test_a_warm_read_that_asks_the_service_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CACHE_TIER", str(tmp_path))
    with FeatureStore(f"memory://{tmp_path.name}/store") as store:
        store.put(step_key(0), FEATURES[0])
        reads = Contestant("get", 1, lambda _: store.get(step_key(0)))
        with pytest.raises(RuntimeError, match="asked the service"):
            remote.quiet_s(store, [reads], rounds=1)
        assert len(remote.quiet_s(store, [reads], rounds=1)["get"]) == 1


def test_a_step_that_finds_too_little_is_not_reported(tmp_path):
    wanted = million.steps(replace(QUICK, entries=30))
    million.done(tmp_path / "store", wanted[0])
    with pytest.raises(RuntimeError, match=r"found 30 of 31"):
        million.done(tmp_path / "store", replace(wanted[2], count=31))


@pytest.mark.slow
def test_memory_hardly_grows_with_the_entries_that_are_packed_listed_and_read(tmp_path):
    few, many = _peaks(tmp_path / "few", 2_000, but=("ls", "plan", "keys", "get of")), _peaks(tmp_path / "many", 20_000)
    assert len(many) == 9
    grown = {name: (many[name] - few[name]) / 18_000 for name in few}
    # Arrow takes memory in blocks; each entry's file has 1,800 bytes, in several copies while it is packed.
    assert {name: bytes_each for name, bytes_each in grown.items() if bytes_each > 2_000} == {}


def _peaks(folder, entries, *, but=()):
    found = {}
    for step in million.steps(replace(QUICK, entries=entries, entry_width=1, sampled=200)):
        if step.name.removeprefix("vlm-cache ").startswith("pack"):
            # Shards of 1 MiB, so that few entries fill several of them.
            step = replace(step, case="pack", arguments={"shard_bytes": 1 << 20})
        if not any(word in step.name for word in but):
            peak = million.done(folder / "store", step).peak_bytes
            found[step.name] = peak if step.case != "fill" else 0
    return found
