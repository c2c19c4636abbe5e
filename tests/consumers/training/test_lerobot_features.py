"""Features beside LeRobot's items: by episode and frame, with offsets clamped and padded as LeRobot does.

LeRobot itself is not installed: `Recording` offers what its `LeRobotDataset` documents, `meta` in the form of version 3
(a table by columns) and of versions 2.1 (a mapping by index) and 2.0 (a list).
"""

from __future__ import annotations

import itertools
import pickle
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader

from cache_store import FeatureStore, RecipeMismatch, StepKey
from consumers.training import CachedLeRobot, FeatureMissing
from jobs.__main__ import main
from pipeline.sources import LeRobot
from tests.consumers.training.episodes import feature_of, fill
from tests.pipeline.sources.test_lerobot import write_v2

LENGTHS = {0: 7, 3: 5}
STEPS = {episode: range(0, length, 3) for episode, length in LENGTHS.items()}


class Columns(dict):
    """A table as `datasets.Dataset` shows it: columns by name."""

    @property
    def column_names(self):
        return list(self)


class Recording:
    def __init__(self, root, version=3):
        self.root = root
        columns = Columns(episode_index=list(LENGTHS), length=list(LENGTHS.values()))
        rows = [{"episode_index": episode, "length": length} for episode, length in LENGTHS.items()]
        by_index = {episode: {"length": length} for episode, length in LENGTHS.items()}
        self.meta = SimpleNamespace(fps=10, episodes={3: columns, 2.1: by_index, 2.0: rows}[version])
        self.frames = [(episode, frame) for episode, length in LENGTHS.items() for frame in range(length)]

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        episode, frame = self.frames[index]
        return {"episode_index": torch.tensor(episode), "frame_index": torch.tensor(frame), "action": torch.ones(2)}


@pytest.fixture
def root(tmp_path):
    for episode, steps in STEPS.items():
        fill(tmp_path / "cache", f"pick_episode_{episode:06d}", steps, recipe={"version": 1})
    return tmp_path / "cache"


@pytest.mark.parametrize("version", [2.0, 2.1, 3])
def test_each_frame_has_the_feature_of_its_own_step(root, tmp_path, version):
    cached = CachedLeRobot(Recording(tmp_path / "pick", version), root)
    assert len(cached) == 12
    for index, (episode, frame) in enumerate(cached.dataset.frames):
        item = cached[index]
        assert list(item) == ["episode_index", "frame_index", "action", "vl_cache"]
        assert torch.equal(item["vl_cache"], feature_of(f"pick_episode_{episode:06d}", frame // 3 * 3))


@pytest.mark.parametrize("version", [2.0, 2.1, 3])
def test_offsets_are_clamped_to_the_episode_and_say_so(root, tmp_path, version):
    cached = CachedLeRobot(Recording(tmp_path / "pick", version), root, delta_timestamps=[-0.4, 0.0, 0.3])
    for index, (episode, frame) in enumerate(cached.dataset.frames):
        item, name, length = cached[index], f"pick_episode_{episode:06d}", LENGTHS[episode]
        expected, is_pad = [], []
        for offset in (-4, 0, 3):
            meant = frame + offset
            shown = 0 if meant < 0 else length - 1 if meant >= length else meant
            expected.append(feature_of(name, shown // 3 * 3))
            is_pad.append(meant != shown)
        assert torch.equal(item["vl_cache"], torch.stack(expected))
        assert item["vl_cache_is_pad"].tolist() == is_pad
        assert item["vl_cache_is_pad"].dtype == torch.bool


def test_offsets_off_the_frames_grid_and_missing_facts_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="no multiple of 1/10 s"):
        CachedLeRobot(Recording(tmp_path / "pick"), root, delta_timestamps=[0.05])
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"vlm_reuse_count is {count}"):
            CachedLeRobot(Recording(tmp_path / "pick"), root, vlm_reuse_count=count)
    with pytest.raises(ValueError, match="give dataset_name"):
        CachedLeRobot([], root)
    with pytest.raises(ValueError, match="fps and episode_lengths"):
        CachedLeRobot([], root, dataset_name="pick", delta_timestamps=[0])
    items = [{"episode_index": 3, "frame_index": 4}]
    cached = CachedLeRobot(items, root, dataset_name="pick", delta_timestamps=[0.1], fps=10, episode_lengths={3: 5})
    assert cached[0]["vl_cache_is_pad"].tolist() == [True]
    cached = CachedLeRobot(items, root, dataset_name="pick", delta_timestamps=[0.1], fps=10, episode_lengths={})
    with pytest.raises(ValueError, match="how long episode 3"):
        cached[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": -10}, "fps is -10"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": "10"}, "fps must be a number"),
        ({"delta_timestamps": []}, "delta_timestamps"),
        ({"delta_timestamps": [0, float("nan")]}, "delta_timestamps: nan s"),
        ({"vlm_reuse_count": 1.5}, "vlm_reuse_count must be a whole number"),
    ],
)
def test_rates_and_offsets_that_are_none_are_refused(root, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        CachedLeRobot(Recording(tmp_path / "pick"), root, **{"delta_timestamps": [0], **options})


@pytest.mark.parametrize(
    "offsets", [{"vl_cache": [0.0]}, "0.1", 0.1, ["0.1"], [None], [[0.0]], torch.tensor([0.0, -0.1])], ids=repr
)
def test_offsets_that_are_no_list_of_numbers_are_refused_by_name(root, tmp_path, offsets):
    with pytest.raises(ValueError, match="delta_timestamps must be a"):
        CachedLeRobot(Recording(tmp_path / "pick"), root, delta_timestamps=offsets)


@pytest.mark.parametrize("options", [{}, {"delta_timestamps": [0.0], "fps": 10}])
@pytest.mark.parametrize("frame", [-1, 5, 8])
def test_frames_beyond_the_stated_length_are_refused(root, frame, options):
    items = [{"episode_index": 3, "frame_index": frame}]
    cached = CachedLeRobot(items, root, dataset_name="pick", episode_lengths=LENGTHS, **options)
    with pytest.raises(ValueError, match=f"frame_index {frame} is no frame of episode 3, which is said to have 5"):
        cached[0]


def test_items_of_several_data_sets_in_one_are_refused(root):
    items = [{"dataset_index": number, "episode_index": 0, "frame_index": 0} for number in range(2)]
    with pytest.raises(ValueError, match=r"dataset_index.*CachedLeRobot of its own"):
        CachedLeRobot(items, root, dataset_name="pick")[0]


def test_a_miss_is_an_error_or_none_and_never_a_neighbour(root, tmp_path):
    (root / "pick_episode_000000_vlm3.pt").unlink()
    with pytest.raises(FeatureMissing, match="vlm_idx=3"):
        CachedLeRobot(Recording(tmp_path / "pick"), root)[4]
    lenient = CachedLeRobot(Recording(tmp_path / "pick"), root, on_miss="none")
    assert lenient[4]["vl_cache"] is None
    assert torch.equal(lenient[6]["vl_cache"], feature_of("pick_episode_000000", 6))
    for option in ("on_miss", "on_stale"):
        with pytest.raises(ValueError, match=f"^{option} is 'None'; give"):
            CachedLeRobot(Recording(tmp_path / "pick"), root, **{option: "None"})


def test_recipes_are_compared_where_they_are_given(root, tmp_path):
    assert CachedLeRobot(Recording(tmp_path / "pick"), root, recipe={"version": 1})[0]["vl_cache"] is not None
    by_item = CachedLeRobot(Recording(tmp_path / "pick"), root, recipe=recipe_of_item)
    assert by_item[0]["vl_cache"] is not None
    with pytest.raises(RecipeMismatch):
        by_item[8]


@pytest.mark.parametrize("offsets", [None, [-0.3, 0.0]])
def test_an_item_is_compared_with_its_own_recipe_whatever_else_is_in_the_batch(tmp_path, offsets):
    for step, task in ((0, 0), (3, 1)):
        fill(tmp_path / "cache", "pick_episode_000000", [step], recipe={"task": task})
    # The task changes in the middle of the first step.
    items = [{"episode_index": 0, "frame_index": frame, "task_index": int(frame >= 2)} for frame in range(6)]
    options = {"delta_timestamps": offsets, "fps": 10, "episode_lengths": {0: 6}} if offsets else {}
    cached = CachedLeRobot(items, tmp_path / "cache", dataset_name="pick", recipe=task_of_item, **options)
    refused = {index for index in range(6) if is_refused(cached, [index])}
    assert refused == ({2, 3, 4, 5} if offsets else {2})
    for batch in itertools.permutations(range(6), 2):
        assert is_refused(cached, batch) == bool(refused & {*batch})


def is_refused(cached, batch):
    try:
        cached.__getitems__(list(batch))
    except RecipeMismatch:
        return True
    return False


def task_of_item(item):
    return {"task": item["task_index"]}


def test_a_step_is_read_once_for_all_items_of_one_recipe(root, tmp_path):
    cached = CachedLeRobot(Recording(tmp_path / "pick"), root, recipe=recipe_of_item)
    cached.__getitems__([0, 1, 2, 3])
    cached._reader._store.close()
    with FeatureStore(root) as store:
        assert store.stats().hits == 2


def recipe_of_item(item):
    return {"version": 1 + int(item["episode_index"])}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_every_kind(root, tmp_path, context):
    cached = CachedLeRobot(Recording(tmp_path / "pick"), root, recipe={"version": 1}, delta_timestamps=[0.0, 0.1])
    cached[0]
    assert len(pickle.dumps(cached)) < 5_000
    loader = DataLoader(cached, batch_size=5, num_workers=2, multiprocessing_context=context)
    assert torch.cat([batch["vl_cache"] for batch in loader]).shape == (12, 2, 1, 1, 3)


def test_the_steps_are_those_that_the_build_makes(tmp_path):
    built = {(sample.dataset, sample.vlm_idx) for sample in LeRobot(write_v2(tmp_path / "pick"))}
    cached = CachedLeRobot(Recording(tmp_path / "pick"), tmp_path)
    lengths = {0: 5, 1: 7}  # of write_v2
    asked = {cached._key(episode, frame) for episode, length in lengths.items() for frame in range(length)}
    assert {(key.dataset, key.vlm_idx) for key in asked} == built


@pytest.mark.usefixtures("local_ray")
def test_a_real_lerobot_set_is_read_beside_its_rows(real_media, tmp_path, capsys):
    data, store = real_media / "robots" / "lerobot_v2_robot_sim.PickNPlace", tmp_path / "store"
    arguments = ["--source", "lerobot", "--data", str(data), "--vlm-reuse-count", "200", "--store", str(store)]
    assert main(["build", *arguments, "--encoder", "qwen2_5_vl", "--model", "small", "--json"]) == 0
    capsys.readouterr()
    for file in sorted((data / "data").glob("*/*.parquet")):
        # This set has no column frame_index: the row's number is the frame's.
        rows = pyarrow.parquet.read_table(file, columns=["episode_index"]).to_pylist()
        name = f"{data.name}_episode_{rows[0]['episode_index']:06d}"
        with pytest.raises(ValueError, match="without frame_index"):
            CachedLeRobot(rows, store, dataset_name=data.name)[0]
        items = [{**row, "frame_index": number} for number, row in enumerate(rows)]
        cached = CachedLeRobot(items, store, dataset_name=data.name, vlm_reuse_count=200)
        with FeatureStore(store) as opened:
            for index in (0, 199, 200, len(rows) - 1):
                expected = opened.get(StepKey(name, index // 200 * 200))
                assert torch.equal(cached[index]["vl_cache"], expected)
