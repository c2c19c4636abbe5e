"""Arrays in files: the shape without the data, rows without the rest, and damage in words."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pipeline.errors import MediaError
from pipeline.sources.array_files import array_file, array_in

VALUES = np.arange(60, dtype=np.float32).reshape(12, 5)


def save(path, values, kind):
    if kind == "npy":
        np.save(path.with_suffix(".npy"), values)
        return array_file(path.with_suffix(".npy"))
    (np.savez if kind == "plain" else np.savez_compressed)(path.with_suffix(".npz"), first=[1], values=values)
    return array_in(path.with_suffix(".npz"), "values")


@pytest.mark.parametrize("kind", ["plain", "compressed", "npy"])
@pytest.mark.parametrize("values", [VALUES, np.asfortranarray(VALUES), VALUES[:, 0], VALUES[:0], VALUES.astype(">f8")])
@pytest.mark.parametrize(("start", "stop"), [(0, 12), (3, 7), (11, 99), (12, 20), (5, 5)])
def test_rows_are_those_of_a_slice(tmp_path, kind, values, start, stop):
    stored = save(tmp_path / "file", values, kind)
    assert (stored.shape, stored.dtype) == (values.shape, values.dtype)
    assert np.array_equal(stored.rows(start, stop), values[start:stop])


def test_plain_rows_keep_nothing_in_memory_and_compressed_ones_say_what_they_keep(tmp_path):
    plain, compressed = (save(tmp_path / kind, VALUES, kind) for kind in ("plain", "compressed"))
    plain.rows(0, 3)[:] = 9  # the caller's own
    compressed.rows(0, 3)
    assert (plain.kept_bytes, compressed.kept_bytes) == (0, VALUES.nbytes)
    assert plain.rows(0, 1)[0, 1] == 1


def test_an_absent_array_is_none_and_damage_is_an_error(tmp_path):
    stored = save(tmp_path / "file", VALUES, "plain")
    assert array_in(stored.path, "others") is None
    whole = stored.path.read_bytes()
    stored.path.write_bytes(whole[:400])
    with pytest.raises(MediaError, match="cannot be read"):
        array_in(stored.path, "values")
    cut = save(tmp_path / "file", VALUES, "npy").path
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(MediaError, match="ends within 'file'"):
        array_file(cut).rows(0, 12)


@pytest.mark.parametrize("kind", ["plain", "compressed", "npy"])
@pytest.mark.parametrize("is_in_place", [True, False])
def test_rows_of_a_file_that_was_replaced_since_it_was_opened_are_an_error(tmp_path, kind, is_in_place):
    stored = save(tmp_path / "file", VALUES, kind)
    opened_ns = stored.path.stat().st_mtime_ns
    (tmp_path / "later").mkdir()
    later = save(tmp_path / "later" / "file", VALUES + 1, kind)
    os.utime(later.path, ns=(opened_ns, opened_ns + 4_000_000))
    if is_in_place:
        stored.path.write_bytes(later.path.read_bytes())
        os.utime(stored.path, ns=(opened_ns, opened_ns + 4_000_000))
    else:
        later.path.replace(stored.path)
    with pytest.raises(MediaError, match=r"file\.np. was replaced or written to since it was opened"):
        stored.rows(3, 5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([{}], dtype=object), "objects"),
        (np.float32(1), "single number"),
        (np.array(["1"]), "real numbers"),
        (np.array([1j]), "real numbers"),
        (np.array(["2026-01-01"], "M8[s]"), "real numbers"),
    ],
)
def test_only_rows_of_real_numbers_are_admitted(tmp_path, values, said):
    np.savez(tmp_path / "file.npz", values=values)
    with pytest.raises(MediaError, match=said):
        array_in(tmp_path / "file.npz", "values")
