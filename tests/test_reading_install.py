"""The base install reads: store, loaders and `stats` work without ray, transformers, decord, PyAV and Pillow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from cache_store import FeatureStore, StepKey
from tests.consumers.training.episodes import fill, write_new, write_old

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            *("ray", "transformers", "decord", "av", "PIL", "safetensors", "tokenizers"),
            *("scipy", "joblib", "pandas", "torchdata", "lerobot"),
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Hidden())
"""


def run_without_build_packages(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", HIDE + code], capture_output=True, text=True, cwd=root)


def test_a_feature_is_read_and_stats_are_printed(tmp_path):
    with FeatureStore(tmp_path) as store:
        store.put(StepKey("episode_1", 0), torch.ones(1, 1, 2), recipe={"version": 1})
    done = run_without_build_packages(
        "from cache_store import FeatureStore, StepKey, VLACacheManager\n"
        "from consumers.training import FeatureDataset\n"
        "from pipeline.sources import open_source\n"
        "from pipeline.vision import SamplingRule\n"
        "import pipeline.recipe\n"
        "from jobs.__main__ import main\n"
        f"print(FeatureDataset({str(tmp_path)!r}, [StepKey('episode_1', 0)])[0].sum())\n"
        f"sys.exit(main(['stats', '--store', {str(tmp_path)!r}]))\n"
    )
    assert done.returncode == 0, done.stderr
    assert "tensor(2.)" in done.stdout
    assert "1 features" in done.stdout


def test_robot_episodes_are_trained_on(tmp_path):
    write_new(tmp_path / "episode_1", sensor="compressed")
    write_old(tmp_path / "recv_all_1")
    fill(tmp_path / "cache", "episode_1", [0])
    done = run_without_build_packages(
        "from consumers.training import create_unified_dataloader\n"
        f"loader = create_unified_dataloader([{str(tmp_path)!r} + '/recv_*'], [{str(tmp_path / 'episode_1')!r}],\n"
        f"    cache_root={str(tmp_path / 'cache')!r}, num_workers=0)\n"
        "print(sum(len(batch['actions']) for batch in loader), loader.dataset.preflight().needed)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 episodes, 52 samples, VL Cache: 1/18", "52 18"]


def test_a_build_says_which_extra_is_missing(tmp_path):
    arguments = [
        "build",
        "--source",
        "folder",
        "--data",
        ".",
        "--encoder",
        "longva",
        "--model",
        "small",
        "--store",
        "x",
    ]
    done = run_without_build_packages(f"from jobs.__main__ import main\nsys.exit(main({arguments!r}))\n")
    assert done.returncode == 2
    assert "vlm-cache[build]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_llavas_own_code_is_evaluated(tmp_path):
    done = run_without_build_packages(
        "import torch\n"
        "from consumers.evaluation import CachedVisionTower, LongVA_Cached\n"
        "class Model(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.tower = torch.nn.Conv2d(3, 8, 14, 14)\n"
        "        self.tower.select_layer, self.tower.select_feature = -2, 'patch'\n"
        "    def get_vision_tower(self):\n"
        "        return self.tower\n"
        "model = Model()\n"
        "model.tower.forward = lambda images: torch.randn(len(images), 5, 8)[:, 1:]\n"
        "for on_miss in ('keep', 'raise'):\n"
        f"    cache = CachedVisionTower(model, {str(tmp_path)!r}, dataset='set', nframe=2, model_signature='0' * 8,\n"
        "        on_miss=on_miss)\n"
        "    with cache.request('video') as request:\n"
        "        print(model.tower(request.pixels(lambda: torch.zeros(2, 3, 28, 28))).sum().item())\n"
        "print(cache.statistics.block())\n"
    )
    assert done.returncode == 0, done.stderr
    first, second, *block = done.stdout.splitlines()
    assert first == second
    assert "Hit rate: 100.0%" in block


def test_the_oldest_versions_that_are_tried_are_those_that_are_promised():
    root = Path(__file__).parents[1]
    promised = re.search(r"^dependencies = \[\n(.*?)^\]", (root / "pyproject.toml").read_text(), re.M | re.S)[1]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (root / "tests/oldest/requirements.txt").read_text(), re.M))
    for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', promised):
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", pinned[name]), name
    assert re.search(r'requires-python = ">=3.10"', (root / "pyproject.toml").read_text())
    assert "OLDEST_PYTHON ?= python3.10\n" in (root / "Makefile").read_text()
