"""The order of samples, a pure function of seed and epoch: cut among processes, resumed in the middle of an epoch."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from consumers.numeric_options import require_whole_numbers


class ResumableSampler(Sampler[int]):
    """Indices below `num_samples` for process `rank` of `world_size`, in an order that seed and epoch alone decide.

    Without `weights` every index comes once an epoch, shuffled or in order; with them (one for each sample, not
    negative) as many are drawn with replacement, index i in proportion to `weights[i]`. All processes get equally many:
    as `DistributedSampler` does, the order's first indices come once more where it does not divide.

    Each iteration after the first begins the next epoch, unless `set_epoch` said which; one that no index is taken from
    does not count. `state_dict` tells epoch and position, as torchdata's `StatefulDataLoader` asks for them; a plain
    `DataLoader` fetches ahead, so ask `state_at`.

    `samples` is a digest of what the indices stand for, such as `VLAEpisodeSet.digest()`: a state is then refused where
    they stand for other samples. It goes into the states; one that has none is not compared.

    `prefetch` is told, ahead of time, what comes next: each index once, when it is among the next `prefetch_samples`.
    Data sets behind a URL have such a method, for loaders without worker processes; with those, a `DataLoader` itself
    lets `prefetch_factor` batches be read ahead.

    Raises:
        ValueError: no samples, weights that are none, a seed below 0, a rank outside of its world, or no whole number.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        samples: str | None = None,
        prefetch: Callable[[Sequence[int]], object] | None = None,
        prefetch_samples: int = 64,
    ) -> None:
        require_whole_numbers(num_samples=num_samples, seed=seed, rank=rank, world_size=world_size)
        if seed < 0:
            raise ValueError(f"seed is {seed}, and must be 0 or more")
        if num_samples < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{num_samples} samples for process {rank} of {world_size}: there must be some of each")
        self._limits = None if weights is None else _cumulated(np.asarray(weights, np.float64), num_samples)
        # Python's own, since they go into the states, of which torch.load admits no others.
        self._num_samples, self._shuffle, self._seed = operator.index(num_samples), bool(shuffle), operator.index(seed)
        self._rank, self._world_size, self._samples = operator.index(rank), operator.index(world_size), samples
        self._prefetch, self._prefetch_samples = prefetch, prefetch_samples
        self._epoch, self._position = 0, 0
        self._is_fresh = True  # the next iteration goes on from `_position` of `_epoch`
        self._is_waiting = False  # nothing was taken yet from the iterator that was made last
        self._is_loaded_while_waiting = False

    def __len__(self) -> int:
        """How many indices a whole epoch gives to this process."""
        return -(-self._num_samples // self._world_size)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of `epoch`, from where a loaded state left it if that is the same epoch."""
        if epoch != self._epoch or not self._is_fresh:
            self._epoch, self._position = operator.index(epoch), 0
        self._is_fresh = True

    def __iter__(self) -> Iterator[int]:
        self._leave_begun_epoch()
        self._is_waiting = True
        if self._position >= len(self) and self._is_loaded_while_waiting:
            # The rest of an epoch that a state left at its end. Torchdata's loader, whose state says that too, makes an
            # iterator of it that it does not take from: nothing else will tell that the epoch was begun. It alone loads
            # states into what it has begun to iterate.
            self._is_fresh = False
            return iter(())
        return self._indices()

    def _leave_begun_epoch(self) -> None:
        if not self._is_fresh:
            self._epoch, self._position, self._is_fresh = self._epoch + 1, 0, True

    def _indices(self) -> Iterator[int]:
        # At the first index: loaders with workers make two iterators, and take from the second one only.
        self._leave_begun_epoch()
        self._is_fresh = self._is_waiting = False
        epoch, start = self._epoch, self._position
        order, told = self._order(epoch), start
        for position in range(start, len(order)):
            # By halves: many at once, and always some that nobody has asked for yet.
            if self._prefetch is not None and told < len(order) and told - position <= self._prefetch_samples // 2:
                ahead = position + self._prefetch_samples
                self._prefetch(order[told:ahead].tolist())
                told = ahead
            # Of an iteration that was given up nothing is noted once another has begun.
            if self._epoch == epoch:
                self._position = position + 1
            yield int(order[position])

    def _order(self, epoch: int) -> np.ndarray:
        chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch])))
        if self._limits is not None:
            drawn = chance.random(self._num_samples) * self._limits[-1]
            order = np.searchsorted(self._limits, drawn, side="right")
        else:
            order = np.arange(self._num_samples)
            if self._shuffle:
                chance.shuffle(order)
        return np.resize(order, len(self) * self._world_size)[self._rank :: self._world_size]

    def state_dict(self) -> dict[str, Any]:
        """Return where the current iteration is: the indices that were taken from it are behind."""
        return self.state_at(self._position, epoch=self._epoch)

    def state_at(self, position: int, *, epoch: int | None = None) -> dict[str, Any]:
        """Return the state in which this process has trained on `position` samples of an epoch, by default the current.

        With a plain `DataLoader` that is the number of batches that came out of it, times the batch size.
        """
        return {"epoch": self._epoch if epoch is None else epoch, "position": position, "order": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from a state.

        Raises:
            ValueError: it is that of another order: of other samples, weights, seed, shuffling or world size; or it is
                no state.
        """
        order, own = state.get("order") or {}, self._identity()
        samples = order.get("samples")
        if None not in (samples, self._samples) and samples != self._samples:
            raise ValueError(
                f"the state is of other samples, {samples}; these are {self._samples}: the episodes, their order, or "
                "which of their samples are left differ; open the data set as it was then, or begin anew"
            )
        if {**order, "samples": None} != {**own, "samples": None}:
            raise ValueError(f"the state is of another order, {order}; this one is {own}")
        epoch, position = state.get("epoch", -1), state.get("position", -1)
        if min(epoch, position) < 0:
            raise ValueError(f"epoch {epoch} and position {position} are no state: neither is below 0")
        self._epoch, self._position, self._is_fresh = epoch, position, True
        self._is_loaded_while_waiting = self._is_waiting

    def _identity(self) -> dict[str, Any]:
        weights = None if self._limits is None else hashlib.sha256(self._limits.tobytes()).hexdigest()[:16]
        return {
            "num_samples": self._num_samples,
            "weights": weights,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "world_size": self._world_size,
            "samples": self._samples,
        }


def _cumulated(weights: np.ndarray, num_samples: int) -> np.ndarray:
    if weights.shape != (num_samples,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"weights must be {num_samples} finite numbers, none below 0 and one above")
    cumulated: np.ndarray = np.cumsum(weights)
    return cumulated
