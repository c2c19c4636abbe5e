"""From patterns and paths of episodes to a `DataLoader`: all of them in one set, weighted, cut among processes."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from cache_store import InvalidKey, recipe_fingerprint
from consumers.training.collate import unified_collate_fn
from consumers.training.ranks import Opened, require_alike
from consumers.training.sampler import ResumableSampler
from consumers.training.vla_dataset import UnifiedVLADataset
from consumers.training.vla_episodes import VLAEpisodeSet
from consumers.words import require_lists, require_one_of
from pipeline.errors import MediaError, SourceError
from pipeline.sources.vla_episodes import NEW_MARKER, OLD_MARKER, Format, require_one_format

OnBadEpisode = Literal["raise", "skip"]

_BATCHES_AHEAD = 4
_SAMPLES_AHEAD = 64  # else small batches would leave most of what may be asked at once unasked
_NEW_NAMES = ("episode_", "data_collection_")
_NAMES = (*_NEW_NAMES, "recv_all_")
Paths = Sequence[str | os.PathLike[str]]


def create_unified_dataloader(
    old_dataset_patterns: Paths | None = None,
    new_dataset_paths: Paths | None = None,
    *,
    dataset_weights: Sequence[str] | None = None,
    batch_size: int = 4,
    num_workers: int = 4,
    shuffle: bool = True,
    seed: int = 0,
    distributed: bool = False,
    rank: int = 0,
    world_size: int = 1,
    on_bad_episode: OnBadEpisode = "raise",
    **options: Any,
) -> DataLoader[Any]:
    """Return a loader over all episodes found, a `VLAEpisodeSet`; rank 0 prints its coverage.

    `old_dataset_patterns` are folders, or patterns of folders, with data.pkl. `new_dataset_paths` are episodes, tasks
    (folders of `episode_*` or `data_collection_*`), roots of tasks, or patterns of these. A folder that is named as an
    episode and holds none is one that cannot be read. `dataset_weights` are
    `"path:weight"`: the weight of each sample of the episodes at or below the path or pattern, 1.0 without one; of
    several paths the longest counts, of two statements on one path the last; without `shuffle` none does. `options` are
    those of `UnifiedVLADataset`. The sampler is a `ResumableSampler`, so `loader.sampler.set_epoch` and its state work
    in all cases, and weights also with `distributed`. With that, where torch's default process group is up, the
    processes compare what they opened, so all of them have to call this. `rank` and `world_size` count the parts of an
    epoch, which several processes of a group may share.

    Raises:
        SourceError: nothing is found where a path or a weight points, a root has episodes beside tasks, two episodes
            have one name, no episode has a sample, processes found other samples, settings or recipes than each other,
            or, unless `on_bad_episode` is "skip", some cannot be read or have a name that no feature can have; each is
            named.
        ValueError, TypeError: an option is none, or out of its range; a `rank` or `world_size` without `distributed`.
    """
    if (rank, world_size) != (0, 1) and not distributed:
        raise ValueError(
            f"rank is {rank} and world_size is {world_size} without distributed=True, which cuts an epoch among "
            "processes; give that too, or leave both out"
        )
    require_one_of(OnBadEpisode, on_bad_episode=on_bad_episode)
    require_lists(
        old_dataset_patterns=old_dataset_patterns, new_dataset_paths=new_dataset_paths, dataset_weights=dataset_weights
    )
    try:
        folders: list[tuple[Path, Format]] = [(folder, "old") for folder in _old_episodes(old_dataset_patterns or ())]
        folders += [(folder, "new") for folder in _new_episodes(new_dataset_paths or ())]
        opened, problems = _opened(folders, options, skip=on_bad_episode == "skip")
        episodes, weights = VLAEpisodeSet(opened), None
        if dataset_weights:
            stated = _weights(
                [episode.data_dir for episode in episodes.episodes],
                dataset_weights,
                found=[folder for folder, _ in folders],
            )
            weights = episodes.sample_weights(stated)
    except Exception as exc:
        if distributed:
            require_alike(Opened(rank, world_size, error=f"{type(exc).__name__}: {exc}"))
        raise
    for problem in problems:
        print(f"left out: {problem}")
    if distributed:
        settings = {"samples": episodes.digest(), "seed": int(seed), "shuffle": shuffle, "batch_size": batch_size}
        settings |= {"weights": None if weights is None else hashlib.sha256(weights.tobytes()).hexdigest()[:16]}
        require_alike(
            Opened(rank, world_size, None, len(episodes), len(problems), settings, _compared_recipes(episodes))
        )
    if not len(episodes):
        raise SourceError(f"no samples are left; found were {episodes}")
    if rank == 0:
        print(episodes)
    sampler = ResumableSampler(
        len(episodes),
        weights=weights if shuffle else None,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        samples=episodes.digest(),
        prefetch=None if num_workers else episodes.prefetch,
        prefetch_samples=max(_SAMPLES_AHEAD, _BATCHES_AHEAD * batch_size),
    )
    return DataLoader(
        episodes,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=unified_collate_fn,
        prefetch_factor=_BATCHES_AHEAD if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _opened(
    folders: Iterable[tuple[Path, Format]], options: dict[str, Any], *, skip: bool
) -> tuple[list[UnifiedVLADataset], list[str]]:
    """Return the episodes, and why others are left out."""
    episodes, problems = [], []
    for folder, kind in dict(folders).items():
        try:
            require_one_format(folder)
            # The store is asked for all of them at once.
            episodes.append(UnifiedVLADataset(folder, format=kind, look_up=False, **options))
        except (InvalidKey, MediaError, OSError) as exc:
            problems.append(str(exc))
    if problems and not skip:
        raise SourceError(
            f"{len(problems)} episodes cannot be read (on_bad_episode='skip' leaves them out):\n" + "\n".join(problems)
        )
    return episodes, problems


def _compared_recipes(episodes: VLAEpisodeSet) -> list[str | None]:
    """The fingerprint of the recipe that is noted of each episode, where another one's feature would be refused."""
    return [
        None if episode.recipe is None or episode.reader.on_stale == "use" else recipe_fingerprint(episode.recipe)[:16]
        for episode in episodes.episodes
    ]


def _matches(path: str | os.PathLike[str]) -> list[Path]:
    """Return what a path or a pattern names, made absolute and sorted.

    Raises:
        SourceError: nothing.
    """
    text = os.path.abspath(path)
    found = [text] if os.path.exists(text) else sorted(glob.glob(text))
    if not found:
        raise SourceError(f"{path} names nothing that is there")
    return [Path(one) for one in found]


def _old_episodes(patterns: Paths) -> list[Path]:
    # What a pattern hits beside episodes is no episode; what is named alone is to be one.
    found = []
    for pattern in patterns:
        matches = _matches(pattern)
        episodes = [path for path in matches if (path / OLD_MARKER).is_file() or _is_incomplete(path)]
        if not episodes:
            raise SourceError(f"{pattern}: no folder with {OLD_MARKER}")
        found += episodes
    return found


def _new_episodes(paths: Paths) -> list[Path]:
    found = []
    for path in paths:
        episodes = [episode for match in _matches(path) for episode in _episodes_at(match)]
        if not episodes:
            raise SourceError(f"{path}: no folder with {NEW_MARKER}, nor {' or '.join(_NEW_NAMES)} folders below")
        found += episodes
    return found


def _is_incomplete(path: Path) -> bool:
    """Whether a folder is called an episode and holds none: opened as one, it is a problem that names it."""
    is_named_so = path.name.startswith(_NAMES) and path.is_dir()
    return is_named_so and not any((path / marker).is_file() for marker in (OLD_MARKER, NEW_MARKER))


def _episodes_at(path: Path) -> list[Path]:
    if (path / NEW_MARKER).is_file():
        return [path]
    if not path.is_dir():
        return []
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    of_task = [folder for folder in folders if folder.name.startswith(_NEW_NAMES)]
    of_tasks = [
        episode
        for task in folders
        if task not in of_task
        for episode in sorted(task.iterdir())
        if episode.is_dir() and episode.name.startswith(_NEW_NAMES)
    ]
    if of_task and of_tasks:
        raise SourceError(
            f"{path} has episodes ({of_task[0].name}) beside tasks with episodes ({of_tasks[0].parent.name}); name the "
            "tasks and the pattern of its episodes each by itself"
        )
    return of_task or of_tasks or ([path] if _is_incomplete(path) else [])


def _weights(folders: Sequence[Path], stated: Sequence[str], *, found: Sequence[Path]) -> list[float]:
    """Return the weight of each of `folders`, which are those of `found` that could be opened."""
    weight_of: dict[Path, float] = {}
    for item in stated:
        path, colon, weight = item.rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            colon = ""
        if not colon or not path:
            raise ValueError(f"a weight is 'path:number', not {item!r}")
        matches = _matches(path)
        if not any(match == folder or match in folder.parents for match in matches for folder in found):
            raise SourceError(f"the weight {item!r} is of no episode of this set")
        weight_of |= dict.fromkeys(matches, value)
    return [next((weight_of[at] for at in (folder, *folder.parents) if at in weight_of), 1.0) for folder in folders]
