"""Marks of weights tell every change that torch can tell, and keep nothing alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pipeline.encoders.checkpoint import weights_digest
from pipeline.encoders.live_weights import adapter_states, live_digest, module_marks
from tests.adapters import SWITCHES, AdaptedLinear


def linear():
    return torch.nn.Linear(64, 128, bias=False).requires_grad_(False)


def _write(layer):
    layer.weight.mul_(2)


def _write_in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.mul_(2)


def _replace_twice(layer):
    for factor in (2, 3):
        layer.weight = torch.nn.Parameter(layer.weight * factor, requires_grad=False)


def _replace_data_twice(layer):
    for factor in (2, 3):
        layer.weight.data = layer.weight.data * factor


def _load_twice(layer):
    for factor in (2, 3):
        layer.load_state_dict({"weight": layer.weight * factor}, assign=True)


def _cast_and_back(layer):
    layer.bfloat16().float()


@pytest.mark.parametrize(
    "change",
    [
        _write,
        _write_in_inference_mode,
        _replace_twice,
        _replace_data_twice,
        _load_twice,
        _cast_and_back,
    ],
)
def test_every_change_is_another_mark_whatever_address_the_allocator_gives(change):
    for _ in range(10):
        layer = linear()
        before = module_marks(layer)
        assert module_marks(layer) == before
        change(layer)
        assert module_marks(layer) != before


def test_marks_keep_no_tensor():
    layer = linear()
    marks, weight = module_marks(layer), weakref.ref(layer.weight)
    storage = StorageWeakRef(layer.weight.untyped_storage())
    del layer
    gc.collect()
    assert weight() is None
    assert storage.expired()
    assert marks != module_marks(linear())


def test_marks_go_with_a_copy_of_what_holds_them_and_into_no_file():
    layer = linear()
    marks = module_marks(layer)
    assert copy.deepcopy([layer, marks])[1] is marks
    with pytest.raises(TypeError):
        pickle.dumps(marks)


def test_marks_of_what_counts_no_writes_are_equal_to_none():
    with torch.inference_mode():
        layer = linear()
    marks = module_marks(layer)
    assert not marks.counts_writes
    assert marks != module_marks(layer)


@pytest.mark.parametrize("switch", SWITCHES)
def test_an_adapter_that_is_switched_is_another_mark_and_digest(switch):
    model = torch.nn.Sequential(AdaptedLinear(linear()))
    before = module_marks(model), _digest(model)
    assert (module_marks(model), _digest(model)) == before
    SWITCHES[switch](model[0])
    assert module_marks(model) != before[0]
    assert _digest(model) != before[1]


def test_weights_without_adapters_digest_as_they_do_on_disk():
    model = torch.nn.Sequential(linear())
    assert adapter_states(model.modules()) == []
    assert _digest(model) == weights_digest(model.state_dict().items())


def _digest(model):
    return live_digest(model.state_dict().items(), adapter_states(model.modules()))
