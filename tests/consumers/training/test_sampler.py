"""Orders are a function of seed and epoch, are cut as DistributedSampler cuts, and are resumed exactly."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from consumers.training import ResumableSampler


@given(st.integers(1, 60), st.integers(1, 7), st.booleans())
def test_processes_share_every_index_evenly(num_samples, world_size, shuffle):
    parts = [
        list(ResumableSampler(num_samples, shuffle=shuffle, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {-(-num_samples // world_size)}
    assert set().union(*parts) == set(range(num_samples))
    if not shuffle:
        theirs = [
            list(DistributedSampler(range(num_samples), world_size, rank, shuffle=False)) for rank in range(world_size)
        ]
        assert parts == theirs


def test_epochs_differ_and_repeat_by_number():
    sampler = ResumableSampler(50, seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    for epoch, expected in ((1, second), (0, first), (0, first)):
        sampler.set_epoch(epoch)
        assert list(sampler) == expected
    assert list(ResumableSampler(50, seed=4)) != first


def test_weights_draw_in_proportion_and_never_what_weighs_nothing():
    weights = [0, 1, 3, 0] * 500
    drawn = Counter(index % 4 for index in ResumableSampler(2000, weights=weights, seed=1))
    assert set(drawn) == {1, 2}
    assert sum(drawn.values()) == 2000
    # Five standard deviations of a binomial around 1500.
    assert abs(drawn[2] - 1500) < 100


@given(st.integers(1, 40), st.integers(0, 50), st.integers(1, 3), st.booleans())
def test_a_resumed_sampler_gives_the_rest_and_then_the_next_epoch(num_samples, taken, world_size, is_weighted):
    options = {"weights": range(1, num_samples + 1) if is_weighted else None, "world_size": world_size}
    whole = ResumableSampler(num_samples, **options)
    epochs = [list(whole), list(whole), list(whole)]
    running = ResumableSampler(num_samples, **options)
    list(running)
    indices = iter(running)
    taken = min(taken, len(running))
    for _ in range(taken):
        next(indices)
    resumed = ResumableSampler(num_samples, **options)
    resumed.load_state_dict(running.state_dict())
    resumed.set_epoch(1)
    assert list(resumed) == epochs[1][taken:]
    assert list(resumed) == epochs[2]


def test_an_iteration_that_was_given_up_leaves_nothing_behind():
    sampler, whole = ResumableSampler(20), ResumableSampler(20)
    epochs = [list(whole), list(whole)]
    given_up = iter(sampler)
    next(given_up)
    indices = iter(sampler)
    assert next(indices) == epochs[1][0]
    next(given_up)
    assert sampler.state_dict()["position"] == 1


def test_an_iterator_that_nobody_takes_from_uses_up_no_epoch():
    whole, sampler = ResumableSampler(20), ResumableSampler(20)
    for epoch in range(3):
        iter(sampler)
        indices = iter(sampler)
        assert sampler.state_dict() == sampler.state_at(0, epoch=epoch)
        assert list(indices) == list(whole)


@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_plain_loader_of_single_samples_runs_every_epoch(is_persistent):
    whole, sampler = ResumableSampler(20), ResumableSampler(20)
    loader = DataLoader(range(20), batch_size=None, sampler=sampler, num_workers=1, persistent_workers=is_persistent)
    for _ in range(3):
        assert list(loader) == list(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_is_resumed_by_the_batches_that_came_out(workers):
    sampler = ResumableSampler(50, seed=7)
    expected = [batch.tolist() for batch in DataLoader(range(50), batch_size=4, sampler=ResumableSampler(50, seed=7))]
    loader = DataLoader(range(50), batch_size=4, sampler=sampler, num_workers=workers)
    batches = iter(loader)
    seen = [next(batches).tolist() for _ in range(5)]
    state = sampler.state_at(5 * 4)
    del batches
    resumed = ResumableSampler(50, seed=7)
    resumed.load_state_dict(state)
    rest = DataLoader(range(50), batch_size=4, sampler=resumed, num_workers=workers)
    assert seen + [batch.tolist() for batch in rest] == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 5, 13])
def test_torchdatas_stateful_loader_resumes_exactly(workers, taken):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        sampler = ResumableSampler(50, seed=7)
        return stateful.StatefulDataLoader(list(range(50)), batch_size=4, sampler=sampler, num_workers=workers)

    whole = loader()
    epochs = [[batch.tolist() for batch in whole] for _ in range(2)]
    running = loader()
    batches = iter(running)
    seen = [next(batches).tolist() for _ in range(taken)]
    state = running.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert seen + [batch.tolist() for batch in resumed] == epochs[0]
    assert [batch.tolist() for batch in resumed] == epochs[1]


@pytest.mark.parametrize(("workers", "is_persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("is_set", [False, True])
def test_torchdatas_stateful_loader_runs_every_epoch(workers, is_persistent, is_set):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        sampler = ResumableSampler(20, seed=7)
        return sampler, stateful.StatefulDataLoader(
            list(range(20)), batch_size=4, sampler=sampler, num_workers=workers, persistent_workers=is_persistent
        )

    whole = ResumableSampler(20, seed=7)
    epochs = [list(whole) for _ in range(3)]
    sampler, running = loader()
    for epoch in range(3):
        if is_set:
            sampler.set_epoch(epoch)
        assert [index for batch in running for index in batch.tolist()] == epochs[epoch]
    for taken in (0, 2):
        _, running = loader()
        list(running)
        batches = iter(running)
        seen = [index for _ in range(taken) for index in next(batches).tolist()]
        state = running.state_dict()
        sampler, resumed = loader()
        resumed.load_state_dict(state)
        if is_set:
            sampler.set_epoch(1)
        assert seen + [index for batch in resumed for index in batch.tolist()] == epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "drops"), [(3, False), (3, True), (None, False)])
@pytest.mark.parametrize("epochs", [1, 2])
def test_torchdatas_state_at_the_end_of_an_epoch_begins_the_next(workers, batch_size, drops, epochs):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        sampler = ResumableSampler(11, seed=7)
        return stateful.StatefulDataLoader(
            list(range(11)), batch_size=batch_size, sampler=sampler, drop_last=drops, num_workers=workers
        )

    def epoch_of(running):
        return [torch.as_tensor(batch).tolist() for batch in running]

    running, resumed = loader(), loader()
    for _ in range(epochs):
        epoch_of(running)
    resumed.load_state_dict(running.state_dict())
    for _ in range(2):
        assert epoch_of(resumed) == epoch_of(running) != []


def test_the_rest_of_an_epoch_at_its_end_is_empty_once():
    whole, sampler = ResumableSampler(20), ResumableSampler(20)
    epochs = [list(whole), list(whole)]
    sampler.load_state_dict(sampler.state_at(20))
    assert [list(sampler), list(sampler)] == [[], epochs[1]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("is_set", [False, True])
def test_the_rest_of_an_epoch_at_its_end_is_empty_once_in_a_plain_loader_too(workers, batch_size, is_set):
    whole, sampler = ResumableSampler(20), ResumableSampler(20)
    epochs = [list(whole) for _ in range(3)]
    loader = DataLoader(range(20), batch_size=batch_size, sampler=sampler, num_workers=workers)
    sampler.load_state_dict(sampler.state_at(20))
    for epoch, expected in enumerate([[], *epochs[1:]]):
        if is_set:
            sampler.set_epoch(epoch)
        assert [index for batch in loader for index in torch.as_tensor(batch).reshape(-1).tolist()] == expected


def test_a_state_has_numbers_that_torch_load_admits():
    sampler = ResumableSampler(np.int64(20), seed=torch.tensor(3), rank=np.int32(0), world_size=np.int64(1))
    sampler.set_epoch(np.int64(2))
    saved = io.BytesIO()
    torch.save(sampler.state_dict(), saved)
    saved.seek(0)
    ResumableSampler(20, seed=3).load_state_dict(torch.load(saved, weights_only=True))
    assert list(sampler) == list(ResumableSampler(20, seed=3)._order(2))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"num_samples": 21}, {"shuffle": False}, {"world_size": 2}, {"weights": [1.0] * 20}]
)
def test_the_state_of_another_order_is_refused(other):
    state = ResumableSampler(20).state_dict()
    sampler = ResumableSampler(**{"num_samples": 20, **other})
    with pytest.raises(ValueError, match="another order"):
        sampler.load_state_dict(state)


def test_the_state_of_other_samples_is_refused_where_both_are_known():
    state = ResumableSampler(20, samples="0a").state_dict()
    with pytest.raises(ValueError, match="other samples, 0a; these are 0b"):
        ResumableSampler(20, samples="0b").load_state_dict(state)
    ResumableSampler(20, samples="0a").load_state_dict(state)
    ResumableSampler(20).load_state_dict(state)
    del state["order"]["samples"]
    ResumableSampler(20, samples="0b").load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"position": -1}, {"epoch": -1}, {"position": None}, {"order": None}])
def test_what_is_no_state_is_refused(wrong):
    sampler = ResumableSampler(20)
    state = {name: value for name, value in (sampler.state_dict() | wrong).items() if value is not None}
    with pytest.raises(ValueError, match=r"no state|another order"):
        sampler.load_state_dict(state)
    assert len(list(sampler)) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"rank": 2, "world_size": 2},
        {"weights": [1.0]},
        {"weights": [0.0, 0.0]},
        {"weights": [1.0, -1.0]},
        {"weights": [1.0, float("nan")]},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError):
        ResumableSampler(**{"num_samples": 2, **options})
