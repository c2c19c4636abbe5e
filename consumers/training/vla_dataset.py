"""One robot episode as a map-style data set: samples with cached features, or with image paths where there are none."""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from cache_store import ReadOnlyStore, StepKey, absolute_root, prompt_hash
from cache_store.naming import check_dataset
from consumers.numeric_options import require_numbers, require_whole_numbers
from consumers.training.coverage import Coverage, Steps, coverage_of, first_recipes
from consumers.training.feature_reader import FeatureMissing, FeatureReader, OnStale, Recipe
from consumers.training.old_format import SENSOR_WIDTH
from consumers.training.open_episodes import (
    OF_THIS_PROCESS,
    EpisodeData,
    data_of,
    has_robot_states,
    has_sensor,
    opened_episode,
)
from consumers.training.preflight import Preflight, preflight
from consumers.training.robot_states import STATE_WIDTH
from consumers.words import require_lists, require_one_of
from pipeline.errors import MediaError
from pipeline.recipe import views_of, with_instruction, with_views
from pipeline.sources.episode import Episode, chosen_views, instruction_of
from pipeline.sources.vla_episodes import format_of

OnMiss = Literal["images", "raise", "skip"]
FormatChoice = Literal["auto", "old", "new"]
Sample = dict[str, Any]


class UnifiedVLADataset(Dataset[Sample | None]):
    """Samples of the episode in `data_dir`, in order; the keys of a sample are those of contract 2.

    `vl_cache` is the feature of the sample's step and `images` is empty; or `vl_cache` is None and `images` has the
    path of each view's image. A sample never gets another step's feature. On a miss: "images" gives the paths, "raise"
    raises, "skip" makes the sample None, which `unified_collate_fn` leaves out. `filter_by_cache` leaves out, at the
    opening, the samples whose step is not cached then, or, with `on_stale="miss"`, not of the recipe that is noted.
    `use_cache=False` always gives images.

    Features lie under their flat names, or, where those are not there, below the hash of the instruction;
    `prompt_hash_override` names the one folder to look in; of another instruction's hash, that one stays in what is
    noted. The recipe of the episode's first feature that has one is
    noted at the opening (`recipe`), with this data set's instruction in it and, where they are given, its
    `views_to_use`; `on_stale` says what a feature of any other recipe means later: an error, a miss, or use it. Where
    the opening finds none, the first read in each process that finds a feature with a recipe notes it; a file without
    one is looked at once.

    `views_to_use` are names, or numbers that occur in names (1 is `View1` and not `View10`); of a recipe, in the names
    that it has. Without them a miss gives the views that the noted recipe names, and all where there is none.
    `cache_root`, a folder or a URL, is `$VLM_CACHE_DIR`, else `./vlm_cache`, unless given. Arrays are float32:
    `sensor_data` `[sensor_window_size, 1026]`, `robot_states` `[robot_window_size, 12]`, `actions` `[horizon, 7]`. A
    disabled sensor or robot state is zeros and not read, but for the episode's beginning and the new format's actions.
    `timestamp` (new format) is the step's moment in the seconds of the image names. Nothing is opened before the first
    sample; copies go to any kind of worker.

    Raises:
        InvalidKey: a folder's name that no feature can have, unless `use_cache` is off.
        MediaError: the episode cannot be read, or, with `format="auto"`, is of both formats; from a sample: its arrays
            are damaged, of wrong shapes, not finite, or were replaced since they were opened.
        FeatureMissing, RecipeMismatch, StoreReadError: from a sample.
        ValueError, TypeError: an option is none, or out of its range.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        format: FormatChoice = "auto",
        horizon: int = 8,
        vlm_reuse_count: int = 3,
        sensor_window_size: int = 65,
        robot_window_size: int = 100,
        action_expert_hz: float = 10,
        instruction: str | None = None,
        cache_root: str | os.PathLike[str] | None = None,
        use_cache: bool = True,
        views_to_use: Sequence[str | int] | None = None,
        disable_sensor: bool = False,
        disable_robot_state: bool = False,
        prompt_hash_override: str | None = None,
        filter_by_cache: bool = False,
        on_miss: OnMiss = "images",
        *,
        on_stale: OnStale = "error",
        look_up: bool = True,
    ) -> None:
        sizes = (horizon, vlm_reuse_count, sensor_window_size, robot_window_size, action_expert_hz)
        require_whole_numbers(
            horizon=horizon,
            vlm_reuse_count=vlm_reuse_count,
            sensor_window_size=sensor_window_size,
            robot_window_size=robot_window_size,
        )
        require_numbers(action_expert_hz=action_expert_hz)
        if not all(0 < size < math.inf for size in sizes):
            raise ValueError(f"horizon, reuse, windows and rate must be above 0, found {sizes}")
        require_one_of(OnMiss, on_miss=on_miss)
        require_one_of(FormatChoice, format=format)
        require_lists(views_to_use=views_to_use)
        self.data_dir = Path(os.path.abspath(data_dir))
        self.format = format_of(self.data_dir) if format == "auto" else format
        self.horizon, self.vlm_reuse_count, self.action_expert_hz = horizon, vlm_reuse_count, action_expert_hz
        self.sensor_window_size, self.robot_window_size = sensor_window_size, robot_window_size
        self.cache_root = absolute_root(cache_root or os.environ.get("VLM_CACHE_DIR") or "./vlm_cache")
        self.use_cache, self.on_miss, self._filter_by_cache = use_cache, on_miss, filter_by_cache
        self.views_to_use = None if views_to_use is None else tuple(views_to_use)
        # Not the path: a folder may have changed since another data set opened it in this process.
        self._token = uuid.uuid4().hex
        self.reader = FeatureReader(self.cache_root, on_stale=on_stale)
        self._look_at_episode(instruction, prompt_hash_override)
        self.has_sensor &= not disable_sensor
        self.has_robot_states &= not disable_robot_state
        self.covered_by(None)
        if look_up and use_cache:
            look_up_all([self])

    def _look_at_episode(self, instruction: str | None, own_prompt_hash: str | None) -> None:
        """Note what the samples are and which steps they need; the episode itself is dropped again."""
        if self.use_cache:
            check_dataset(self.data_dir.name)
        episode = self._episode()
        self.instruction = instruction_of(episode, instruction)
        self.prompt_hash = own_prompt_hash or prompt_hash(self.instruction)
        self.has_sensor, self.has_robot_states = has_sensor(episode), has_robot_states(episode)
        try:
            num_samples = episode.num_samples()
        except MediaError as exc:
            raise MediaError(f"episode {self.data_dir}: {exc}") from exc
        self._vlm_of = np.fromiter(map(episode.vlm_idx, range(num_samples)), np.int32, num_samples)
        self.steps = Steps(self.data_dir.name, np.unique(self._vlm_of), self.prompt_hash, own_prompt_hash is not None)

    def covered_by(self, coverage: Coverage | None) -> None:
        """Note what of the episode the store holds; None: nothing is known, and nothing is counted as cached."""
        none = np.zeros(len(self.steps.indices), bool)
        self._found, self._nested = (none, none) if coverage is None else (coverage.found, coverage.nested)
        self.without_recipe: set[int] = set()  # steps whose files were looked at while no recipe is noted
        self.compare_with(None if coverage is None else coverage.recipe)
        self._filter()

    def _filter(self) -> None:
        self._kept: np.ndarray | None = None  # the samples that the filter left; None: all
        if self._filter_by_cache and self.use_cache:
            self._kept = np.flatnonzero(self._found[np.searchsorted(self.steps.indices, self._vlm_of)])

    def is_to_fit(self) -> bool:
        """Whether the filter leaves out what is there of another recipe too, since a read would call it a miss."""
        return self._kept is not None and self.reader.on_stale == "miss" and self.recipe is not None

    def fitted_by(self, fits: Sequence[bool]) -> None:
        """Note, for each of `needed_steps`, whether its feature is of the recipe that is noted."""
        self._found[self._found] = fits
        self._filter()

    def compare_with(self, found: Recipe | None) -> None:
        """Note the recipe of a feature, with this data set's instruction and views in it, for every later read."""
        self.recipe: Recipe | None = found
        # A folder of another instruction's hash holds features of other words than the samples have.
        if found is not None and self.prompt_hash == prompt_hash(self.instruction):
            self.recipe = with_instruction(found, self.instruction)
        if self.recipe is not None and self.views_to_use:
            views = _named_views(views_of(self.recipe), self.views_to_use)
            self.recipe = with_views(self.recipe, sorted(set(views)))

    def is_to_note(self) -> bool:
        """Whether the first feature that is read and has a recipe tells it, since nothing did at the opening."""
        return self.recipe is None and self.reader.on_stale != "use"

    @property
    def needed_steps(self) -> np.ndarray:
        """The steps that the samples need, ascending; without those whose samples the filter left out."""
        return self.steps.indices if self._kept is None else self.steps.indices[self._found]

    def steps_of_samples(self) -> np.ndarray:
        """Return the step of each sample, int32 [samples], in their order."""
        steps: np.ndarray = self._vlm_of if self._kept is None else self._vlm_of[self._kept]
        return steps

    @property
    def num_samples(self) -> int:
        """How many samples the episode has, cached or not."""
        return len(self._vlm_of)

    @property
    def vl_cache_files(self) -> dict[int, Path | None]:
        """Each step that the samples need, with the file or shard that holds its feature; None where there was none.

        Of a URL the file is the copy on this machine, which is there once the feature was read.
        """
        if not self.use_cache or not self._found.any():
            return {int(vlm_idx): None for vlm_idx in self.steps.indices}
        store = ReadOnlyStore(self.cache_root)
        return {
            int(vlm_idx): store.file_of(self.key_of_step(int(vlm_idx))) if is_found else None
            for vlm_idx, is_found in zip(self.steps.indices, self._found, strict=True)
        }

    @property
    def cache_found_count(self) -> int:
        """How many of the needed steps were cached at the opening."""
        return int(self._found.sum())

    def __repr__(self) -> str:
        return (
            f"{self.data_dir.name} ({self.format} format): {len(self)} samples, sensor: {self.has_sensor}, "
            f"VL Cache: {self.cache_found_count}/{len(self.steps.indices)}"
        )

    def preflight(self) -> Preflight:
        """Look for every feature that the samples need, and at the arrays, before anything is trained."""
        return preflight([self])

    def __len__(self) -> int:
        return self.num_samples if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Sample | None:
        return self.__getitems__([index])[0]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to download the features that these samples need; for a sampler that knows what comes next."""
        if self.use_cache:
            self.reader.prefetch((self.key_of(index), self.recipe) for index in indices)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        features: list[Any] = [None] * len(indices)
        if self.use_cache:
            features = read_features(self.reader, [(self, index) for index in indices])
        return [self.sample(index, feature) for index, feature in zip(indices, features, strict=True)]

    def key_of(self, index: int) -> StepKey:
        """Return the key of the feature that a sample uses. Raises IndexError beyond the last sample."""
        return self.key_of_step(int(self._vlm_of[self._number(index)]))

    def key_of_step(self, vlm_idx: int) -> StepKey:
        """Return the key of a step that the samples need."""
        nested = bool(self._nested[np.searchsorted(self.steps.indices, vlm_idx)]) or self.steps.is_nested
        return self.steps.key(vlm_idx, nested=nested)

    def sample(self, index: int, feature: Any) -> Sample | None:
        """Return a sample with its feature, None for a miss; what it then is, `on_miss` says."""
        number = self._number(index)
        vlm_idx = int(self._vlm_of[number])
        if feature is None and self.use_cache and self.on_miss != "images":
            if self.on_miss == "skip":
                return None
            raise FeatureMissing(self.key_of_step(vlm_idx), str(self.cache_root))
        data = self.data()
        sensor = robot = None
        if self.has_sensor:
            sensor = torch.from_numpy(data.sensor_window(number, self.sensor_window_size))
        if self.has_robot_states:
            robot = torch.from_numpy(data.robot_window(number, self.robot_window_size))
        sample: Sample = {
            "instruction": self.instruction,
            "images": [] if feature is not None else self._images(data.episode, vlm_idx),
            "vl_cache": feature,
            "sensor_data": torch.zeros(self.sensor_window_size, SENSOR_WIDTH) if sensor is None else sensor,
            "robot_states": torch.zeros(self.robot_window_size, STATE_WIDTH) if robot is None else robot,
            "actions": torch.from_numpy(data.actions(number, self.horizon)),
            "has_sensor": self.has_sensor,
            "has_robot_states": self.has_robot_states,
            "cache_key": f"{self.steps.name}_vlm{vlm_idx}",
            "vlm_idx": vlm_idx,
            "reuse_step": number % self.vlm_reuse_count,
            "confidence": 1.0 if self.has_sensor or self.format == "new" else 0.5,
            "prompt_hash": self.prompt_hash,
        }
        if self.format == "new":
            sample |= {"episode_id": self.steps.name, "timestamp": data.timestamp(vlm_idx)}
        return sample

    def _number(self, index: int) -> int:
        """The number of a sample in its episode, of its index among those that the filter left."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index % len(self) if self._kept is None else int(self._kept[index])

    def data(self) -> EpisodeData:
        """Return the episode's arrays, open in this process. Raises `MediaError`."""
        return OF_THIS_PROCESS.get(
            self._token,
            lambda: data_of(self._episode(), has_sensor=self.has_sensor, has_robot_states=self.has_robot_states),
        )

    def require_sound_arrays(self) -> None:
        """Read the arrays of all samples, each row once. Raises `MediaError`, as one of the samples would."""
        data = self.data()
        samples = range(self.num_samples) if self._kept is None else self._kept.tolist()
        try:
            data.actions(0, self.num_samples + self.horizon - 1)
        except MediaError:
            # The row may be one that no sample needs.
            for sample in samples:
                data.actions(sample, self.horizon)
        data.require_finite_windows(
            samples,
            sensor_size=self.sensor_window_size if self.has_sensor else 0,
            robot_size=self.robot_window_size if self.has_robot_states else 0,
        )

    def _episode(self) -> Any:
        return opened_episode(
            self.data_dir,
            self.format,
            vlm_reuse_count=self.vlm_reuse_count,
            action_expert_hz=self.action_expert_hz,
            horizon=self.horizon,
        )

    def _images(self, episode: Episode, vlm_idx: int) -> list[str]:
        try:
            # Without views of its own, those of which the other samples have features.
            wanted = views_of(self.recipe) if self.recipe is not None and episode.views else []
            if self.views_to_use is not None:
                wanted = _named_views(episode.views, self.views_to_use)
            return [str(episode.image(view, vlm_idx).path) for view in chosen_views(episode, wanted)]
        except MediaError as exc:
            raise MediaError(f"episode {self.data_dir}: no feature of step {vlm_idx}, and {exc}") from exc


def look_up_all(datasets: Sequence[UnifiedVLADataset]) -> None:
    """Let each data set, all of one cache, note what the store holds of it; the store is asked for all of them at once.

    Raises:
        StoreFormatError, StoreReadError: as `coverage_of`.
    """
    if not datasets:
        return
    root = datasets[0].cache_root
    for dataset, coverage in zip(datasets, coverage_of(root, [one.steps for one in datasets]), strict=True):
        dataset.covered_by(coverage)
    asked = [(dataset, dataset.needed_steps.tolist()) for dataset in datasets if dataset.is_to_fit()]
    if asked:
        pairs = ((dataset.key_of_step(step), dataset.recipe) for dataset, steps in asked for step in steps)
        states = ReadOnlyStore(root).states(pairs)
        for dataset, steps in asked:
            dataset.fitted_by([state == "present" for state in islice(states, len(steps))])


def read_features(reader: FeatureReader, places: Sequence[tuple[UnifiedVLADataset, int]]) -> list[Any]:
    """Return the feature of each data set's sample, None where there is none that fits.

    Of episodes that have no recipe noted, that of the first hit that has one is noted before any hit is returned.

    Raises:
        RecipeMismatch, StoreReadError: as `FeatureReader.read`.
    """
    features = reader.read([(dataset.key_of(index), dataset.recipe) for dataset, index in places])
    unsure: dict[int, tuple[UnifiedVLADataset, list[StepKey]]] = {}
    for (dataset, index), feature in zip(places, features, strict=True):
        if feature is not None and dataset.is_to_note():
            key = dataset.key_of(index)
            if key.vlm_idx not in dataset.without_recipe:
                unsure.setdefault(id(dataset), (dataset, []))[1].append(key)
    if not unsure:
        return features
    recipes = first_recipes(ReadOnlyStore(reader.root), [dict.fromkeys(keys) for _, keys in unsure.values()])
    for (dataset, keys), recipe in zip(unsure.values(), recipes, strict=True):
        dataset.compare_with(recipe)
        dataset.without_recipe.update(key.vlm_idx for key in keys)
    if all(recipe is None for recipe in recipes):
        return features
    return reader.read([(dataset.key_of(index), dataset.recipe) for dataset, index in places])


def _named_views(views: Sequence[str], wanted: Sequence[str | int]) -> list[str]:
    """Names as they are; for a number every one of `views` whose name has it as a whole number."""
    names: list[str] = []
    for view in wanted:
        with_number = [name for name in views if str(view) in re.findall(r"\d+", name)]
        names += [view] if isinstance(view, str) else with_number or [f"with the number {view}"]
    return names
