"""A bad line of a list of names is reported with its number and reason, and spoils no other line."""

from __future__ import annotations

import pytest

from cache_store import StepKey
from cache_store.migration_names import read_names

GOOD = {"aaaaaaaa": StepKey("e", 0), "bbbbbbbb": StepKey("e", 30)}


def read(tmp_path, content):
    path = tmp_path / "names"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_names(path)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("../x,e,3", "hash"),
        ("AAAAAAAA,e,3", "hash"),
        (",e,3", "hash"),
        ("cccccccc,e,minus", "whole number"),
        ("cccccccc,e,-1", "whole number"),
        ("cccccccc,e," + "9" * 5000, "whole number"),
        ("cccccccc,e", "whole number"),
        ("cccccccc", "whole number"),
        ("cccccccc,../e,3", "dataset"),
        ("cccccccc,,3", "dataset"),
        ("cccccccc,e,3,4", "4 fields"),
        ('cccccccc,"e,3', "unexpected end"),
        (b"cccccccc,\xff\xfe,3", "surrogate"),
        ("cccccccc," + "e" * 200_000 + ",3", "field larger"),
        ("cccccccc," + "e" * 2000 + ",3", "longer than 180"),
    ],
)
def test_a_bad_row_is_named_and_the_others_count(tmp_path, line, word):
    encoded = line if isinstance(line, bytes) else line.encode()
    found = read(tmp_path, b"hash,dataset,vlm_idx\r\naaaaaaaa,e,0\r\n" + encoded + b"\n\nbbbbbbbb.pt,e,30")
    assert found.names == GOOD
    ((number, reason),) = found.bad_lines
    assert number == 3
    assert word in reason
    assert len(reason) < 310


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        ('"cccccccc": 3', "3 is no"),
        ('"cccccccc": ["e"]', "is no"),
        ('"cccccccc": [["e"], 1]', "is no"),
        ('"cccccccc": ["e", true]', "vlm_idx"),
        ('"cccccccc": ["e", -1]', "vlm_idx"),
        ('"cccccccc": ["e", %s]' % ("9" * 300), "20 digits"),
        ('"cccccccc": ["../e", 1]', "dataset"),
        ('"cccccccc": ["e", 1, "nohash"]', "prompt_hash"),
        ('"cccccccc": "e_vlm%s"' % ("9" * 5000), "is no"),
        ('"cccccccc": "e"', "is no"),
        ('"../x": "e_vlm3"', "hash"),
        ('"e_vlm3": {"a": [1]}', "hash"),
        ('"": null', "is no"),
    ],
)
def test_a_bad_pair_is_named_with_its_line_and_the_others_count(tmp_path, pair, word):
    content = '\ufeff{"aaaaaaaa": ["e", 0],\n\n  PAIR\n, "e_vlm30":\n"bbbbbbbb"\n}\n'
    found = read(tmp_path, content.replace("PAIR", pair))
    assert found.names == GOOD
    ((number, reason),) = found.bad_lines
    assert number == 3
    assert word in reason
    assert len(reason) < 310


@pytest.mark.parametrize(
    "content",
    [
        "hash,dataset,vlm_idx\naaaaaaaa,e,0\ncccccccc,f,1\nbbbbbbbb,e,30\ncccccccc,f,2\n",
        '{"aaaaaaaa": ["e", 0],\n"x": 1,\n"cccccccc": "f_vlm1",\n"bbbbbbbb": ["e", 30],\n"cccccccc": "f_vlm2"}',
        '{"aaaaaaaa": ["e", 0], "bbbbbbbb": ["e", 30],\n\n"f_vlm1": "cccccccc",\n"x": "x",\n"f_vlm2": "cccccccc"}',
    ],
)
def test_a_hash_with_two_names_gets_none_and_both_lines_are_bad(tmp_path, content):
    found = read(tmp_path, content)
    assert found.names == GOOD
    assert [line for line, reason in found.bad_lines if "more than one name: f_vlm1 in line 3" in reason] == [3, 5]


def test_a_hash_named_twice_alike_is_fine(tmp_path):
    found = read(tmp_path, "hash\tdataset\tvlm_idx\naaaaaaaa\te\t0\naaaaaaaa\te\t0\nbbbbbbbb\te\t30\n")
    assert found == (GOOD, [])


@pytest.mark.parametrize("content", ["{}", " {\n}\n", "hash,dataset,vlm_idx"])
def test_an_empty_list_names_nothing(tmp_path, content):
    assert read(tmp_path, content) == ({}, [])
