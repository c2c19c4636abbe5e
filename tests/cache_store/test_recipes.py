"""A recipe has one fingerprint, and two recipes differ in words."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from cache_store.recipes import differences, recipe_fingerprint


def test_the_fingerprint_is_sha256_of_sorted_compact_json_and_ignores_order():
    recipe = {"layer": -2, "processor": {"size": 336, "mean": [0.5, 0.25]}}
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    assert recipe_fingerprint(recipe) == hashlib.sha256(text.encode()).hexdigest()
    assert recipe_fingerprint(dict(reversed(recipe.items()))) == recipe_fingerprint(recipe)


def test_numbers_of_numpy_count_as_pythons_where_json_knows_them_and_are_refused_by_name_else():
    assert recipe_fingerprint({"fps": np.float64(2.0)}) == recipe_fingerprint({"fps": 2.0})
    with pytest.raises(TypeError, match="float32"):
        recipe_fingerprint({"fps": np.float32(2.0)})


@pytest.mark.parametrize("recipe", [{"a": float("nan")}, {1: "a"}, {"a": {2: 3}}, {"a": object()}, {"a": {1}}])
def test_what_has_no_canonical_json_is_refused(recipe):
    with pytest.raises((TypeError, ValueError)):
        recipe_fingerprint(recipe)


def test_differences_name_the_path_and_both_values():
    found = {"layer": -2, "processor": {"size": 336}, "old": 1}
    wanted = {"layer": -1, "processor": {"size": 336}, "new": True}
    assert differences(found, wanted) == [
        "layer: found -2, wanted -1",
        "new: found nothing, wanted true",
        "old: found 1, wanted nothing",
    ]
