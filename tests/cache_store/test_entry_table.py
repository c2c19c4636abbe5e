"""The table of all entries with the changes of the journals applied, against a dictionary."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import entry_table
from cache_store.accounts import Changes, Entry

names = st.sampled_from([f"episode_vlm{i}.pt" for i in range(8)])
times_us = st.integers(1, 9)
runs = st.sampled_from(["", "a", "b", "a,b"])
entries = st.builds(Entry, st.integers(1, 9), times_us, times_us, st.just("0" * 8), runs)


@settings(deadline=None)
@given(
    before=st.dictionaries(names, entries),
    halves=st.integers(0, 8),
    put=st.dictionaries(names, st.none() | entries),
    used=st.dictionaries(names, times_us),
    marks=st.dictionaries(names, runs),
)
def test_changes_are_applied_as_to_a_dictionary(before, halves, put, used, marks):
    changes = Changes()
    changes.entries = put
    # As the journals leave them: what was put or deleted since has its uses and runs in its own entry.
    changes.used = {name: used_us for name, used_us in used.items() if name not in put}
    changes.runs = {name: run for name, run in marks.items() if name not in put}
    wanted = dict(before)
    for name, entry in put.items():
        old = wanted.pop(name, None)
        if entry is not None:
            wanted[name] = entry._replace(runs=runs_of(old, entry.runs))
    for name, entry in wanted.items():
        used_us = max(entry.used_us, changes.used.get(name, 0))
        wanted[name] = entry._replace(used_us=used_us, runs=runs_of(entry, changes.runs.get(name, "")))
    whole = entry_table.from_entries(before)
    table = pa.concat_tables([whole.slice(0, halves), whole.slice(halves)])
    found = entry_table.merged(table, changes)
    assert found.schema == entry_table.SCHEMA
    assert {row["name"]: Entry(*list(row.values())[1:]) for row in found.to_pylist()} == wanted
    assert found.num_rows == len(wanted)


def runs_of(old: Entry | None, more: str) -> str:
    """The runs of both, sorted."""
    return ",".join(sorted({*(old.runs if old else "").split(","), *more.split(",")} - {""}))


def test_no_thread_of_arrow_is_left_that_could_abort_the_process_at_its_end(tmp_path):
    code = """
import os, sys
import pyarrow.compute, pyarrow.parquet
from cache_store import FeatureStore, ReadOnlyStore, StepKey
from tests.cache_store.conftest import tensor

def threads():
    return len(os.listdir("/proc/self/task"))

with FeatureStore(sys.argv[1]) as store:
    key = StepKey("e", 0)
    store.put(key, tensor(1))
    store.remember_plan("a plan", [(key, {})])
    before = threads()
    assert store.stats().entries == 1
with FeatureStore(sys.argv[1]) as store:
    assert list(store.keys()) == [key]
    assert ReadOnlyStore(sys.argv[1]).size()[0] == store.stats().datasets["e"].planned == 1
print(threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
