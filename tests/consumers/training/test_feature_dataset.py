"""Reading features through a DataLoader: each key its own feature, in every kind of worker, and never another's."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from cache_store import FeatureStore, RecipeMismatch, StepKey
from consumers.training import FeatureDataset, FeatureMissing

KEYS = [StepKey("episode_1", number) for number in range(0, 60, 3)]


@pytest.fixture
def root(tmp_path):
    with FeatureStore(tmp_path) as store:
        for key in KEYS:
            store.put(key, torch.full((1, 1, 4), float(key.vlm_idx), dtype=torch.float16), recipe={"version": 1})
    return tmp_path


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_return_each_keys_own_feature_in_order(root, context):
    loader = DataLoader(FeatureDataset(root, KEYS), batch_size=4, num_workers=2, multiprocessing_context=context)
    values = torch.cat(list(loader)).flatten(1)[:, 0]
    assert values.tolist() == [float(key.vlm_idx) for key in KEYS]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_hits_of_workers_are_counted_when_they_end(root, context):
    loader = DataLoader(FeatureDataset(root, KEYS), batch_size=None, num_workers=2, multiprocessing_context=context)
    assert len(list(loader)) == len(KEYS)
    del loader
    with FeatureStore(root) as store:
        assert store.stats().hits == len(KEYS)


def test_a_missing_feature_is_an_error_that_names_its_key(root):
    dataset = FeatureDataset(root, [*KEYS, StepKey("episode_2", 0)])
    with pytest.raises(FeatureMissing, match="episode_2") as caught:
        dataset[len(KEYS)]
    assert pickle.loads(pickle.dumps(caught.value)).key == StepKey("episode_2", 0)


def test_another_recipe_is_an_error_and_not_a_feature(root):
    assert FeatureDataset(root, KEYS, recipe={"version": 1})[1].max() == 3
    with pytest.raises(RecipeMismatch):
        FeatureDataset(root, KEYS, recipe={"version": 2})[1]


def test_an_item_is_asked_for_by_a_whole_number(root):
    dataset = FeatureDataset(root, KEYS)
    assert dataset[torch.tensor(2)].max() == dataset[2 - len(KEYS)].max() == 6
    with pytest.raises(TypeError, match="'slice' object cannot be interpreted as an integer"):
        dataset[1:3]
    with pytest.raises(IndexError):
        dataset[len(KEYS)]


def test_a_used_data_set_can_be_pickled(root):
    dataset = FeatureDataset(root, KEYS)
    assert dataset[0] is not None
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2], dataset[2])
