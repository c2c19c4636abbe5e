"""On a cluster with GPUs each lane holds one of its own. They are fake here: Ray pins, and torch sees none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from pathlib import Path
import ray
from cache_store import FeatureStore
from pipeline.lanes import run_build
from pipeline.work_plan import BuildTask, plan_build
from tests.pipeline.lanes.faulty_encoder import ENCODER_TELLS_ITS_GPU, FaultySource, FaultySpec

folder = Path(sys.argv[1])
(folder / "marks").mkdir()
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
store = FeatureStore(folder / "store", run_id="gpus")
task = BuildTask(FaultySpec(folder / "marks"), str(store.root), "gpus")
plan = plan_build(FaultySource(folder / "images", [ENCODER_TELLS_ITS_GPU] * 20), task, store, overwrite=False)
lanes = []
report = run_build(plan, store, on_progress=lambda progress: lanes.append(len(progress.lanes)))
print(json.dumps({**report.to_json(), "lanes": max(lanes)}))
"""


def test_one_lane_for_each_gpu_and_a_word_if_torch_sees_none(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["done"], report["lanes"]) == (20, 2)
    assert sorted(mark.name for mark in (tmp_path / "marks").glob("gpu *")) == ["gpu 0", "gpu 1"]
    assert "torch sees none" in report["warning"]
