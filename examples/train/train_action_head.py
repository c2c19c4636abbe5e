"""Train a small action head on cached features, on one process or on many under torchrun, and go on where it stopped.

vlm-cache demo
torchrun --standalone --nproc-per-node 2 examples/train/train_action_head.py \
    --new demo_run/input/episodes/needle_insertion --cache demo_run/vla_cache --checkpoint head.pt
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from consumers.training import create_unified_dataloader


class ActionHead(nn.Module):
    """From a step's feature `[batch, D]` and the robot's state now `[batch, 12]` to actions `[batch, horizon, 7]`."""

    def __init__(self, feature_width: int, horizon: int, hidden: int = 128) -> None:
        super().__init__()
        self.horizon = horizon
        self.layers = nn.Sequential(
            nn.Linear(feature_width + 12, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, horizon * 7)
        )

    def forward(self, features: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([features, state], dim=1)).view(-1, self.horizon, 7)


def inputs(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, states and wanted actions of a batch without misses, float32."""
    features = torch.stack([feature.flatten() for feature in batch["vl_cache"]]).float()
    return features, batch["robot_states"][:, 0], batch["actions"]


class Training:
    """A head, its optimizer, and how far they are: epoch by epoch, with checkpoints in between."""

    def __init__(self, options: argparse.Namespace, rank: int, world_size: int) -> None:
        self.options, self.rank, self.world_size = options, rank, world_size
        torch.manual_seed(options.seed)
        self.loader = create_unified_dataloader(
            options.old,
            options.new,
            dataset_weights=options.weight,
            batch_size=options.batch_size,
            num_workers=options.workers,
            seed=options.seed,
            distributed=world_size > 1,
            rank=rank,
            world_size=world_size,
            cache_root=options.cache,
            on_miss="raise",
            robot_window_size=1,  # in either format the row of the sample's own moment
        )
        if rank == 0:
            print(self.loader.dataset.preflight().require())
        first = self.loader.dataset[0]
        self.head = ActionHead(first["vl_cache"].numel(), first["actions"].shape[0])
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=options.learning_rate)
        self.first_epoch, self.losses = 0, []
        self.steps = 0  # of this process's life
        self.done, self.total = 0, torch.zeros(())  # samples of this epoch, and the sum of their losses
        if options.checkpoint is not None and options.checkpoint.exists():
            self.resume(torch.load(options.checkpoint, weights_only=True))
        self.module: nn.Module = DistributedDataParallel(self.head) if world_size > 1 else self.head

    def resume(self, saved: Mapping[str, Any]) -> None:
        self.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loader.sampler.load_state_dict(saved["sampler"])
        self.first_epoch, self.losses, self.total = saved["sampler"]["epoch"], saved["losses"], saved["total"]
        self.done = saved["sampler"]["position"]

    def save(self, epoch: int) -> None:
        """Write a checkpoint whole or not at all; the processes are as far as each other, so one is for all.

        Every process calls this, and rank 0 writes.
        """
        total = self.mean_of_all(self.total)
        if self.rank != 0:
            return
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.loader.sampler.state_at(self.done, epoch=epoch),
            "losses": self.losses,
            "total": total,
        }
        temporary = self.options.checkpoint.with_suffix(".writing")
        torch.save(state, temporary)
        temporary.replace(self.options.checkpoint)

    def mean_of_all(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a value over all processes, each of which calls this."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def run_epoch(self, epoch: int) -> bool:
        """Train on the rest of an epoch; False if the training is to stop in its middle."""
        self.loader.sampler.set_epoch(epoch)
        for batch in self.loader:
            features, state, wanted = inputs(batch)
            loss = nn.functional.smooth_l1_loss(self.module(features, state), wanted)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.done, self.total = self.done + len(wanted), self.total + len(wanted) * loss.detach()
            self.steps += 1
            if self.options.checkpoint is not None and self.steps % self.options.save_every == 0:
                self.save(epoch)
            if self.steps == self.options.stop_after:
                return False
        self.losses.append(float(self.mean_of_all(self.total) / self.done))
        self.done, self.total = 0, torch.zeros(())
        if self.options.checkpoint is not None:
            self.save(epoch + 1)
        return True


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, print the mean loss of each epoch, and return these losses."""
    options = parsed(arguments)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        dist.init_process_group("gloo")
    training = Training(options, rank, world_size)
    for epoch in range(training.first_epoch, options.epochs):
        if not training.run_epoch(epoch):
            break
        if rank == 0:
            print(f"epoch {epoch}: loss {training.losses[-1]:.5f}", flush=True)
    if world_size > 1:
        dist.barrier()  # who leaves while the other still talks to it may abort in torch's own threads
        dist.destroy_process_group()
    return training.losses


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", action="append", metavar="PATH", help="episodes, tasks or roots of the new format")
    parser.add_argument("--old", action="append", metavar="PATTERN", help="episode folders of the old format")
    parser.add_argument("--cache", required=True, metavar="ROOT", help="folder or URL of the store of their features")
    parser.add_argument("--weight", action="append", metavar="PATH:NUMBER", help="draw these samples more often")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="loader processes for each training process")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on from there, and save there")
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="end in the middle, as a preempted job does")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
