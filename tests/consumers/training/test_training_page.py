"""The snippets of docs/training.md run, one after another, over a folder like the demo's, and give what they say."""

from __future__ import annotations

import pytest
import torch

from pipeline.recipe import with_instruction
from tests.consumers.training.episodes import RECIPE, fill, write_new, write_old
from tests.documents import REPOSITORY, blocks


@pytest.fixture
def demo_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recv_all_20251027_170308", "recv_all_20251028_091500"):
        write_old(tmp_path / "demo_run/input/episodes/old_rig" / name, rows=32)
        recipe = with_instruction({**RECIPE, "images": {"views": ["View1", "View2"]}}, "Insert it.")
        fill(tmp_path / "demo_run/vla_cache", name, range(0, 24, 3), recipe=recipe)
    for name in ("episode_20251030_025119", "episode_20251030_030204"):
        write_new(tmp_path / "demo_run/input/episodes/needle_insertion" / name, poses=240)
        # Another rig, with other cameras.
        recipe = with_instruction(
            {**RECIPE, "images": {"views": ["left", "right"]}}, "Perform needle insertion insertion task."
        )
        fill(tmp_path / "demo_run/vla_cache", name, range(0, 230, 30), recipe=recipe)


@pytest.mark.usefixtures("demo_run")
def test_the_snippets_run_and_print_what_they_say(capsys):
    names: dict[str, object] = {}
    for block in blocks(REPOSITORY / "docs" / "training.md", "python"):
        exec(compile(block, "docs/training.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "4 episodes, 94 samples, VL Cache: 32/32",
        "episode_20251030_025119 (new format): 23 samples, sensor: True, VL Cache: 8/8",
    ]
    assert names["batch"]["actions"].shape == (8, 8, 7)
    assert len(names["remaining"]) == 9
    item = names["cached"][0]
    assert (item["vl_cache"].shape, item["vl_cache_is_pad"].tolist()) == (torch.Size([2, 1, 1, 4]), [True, False])
