"""`--micro-batch` on the command line: its recipe, its bits after a resume and a retry, and what it is refused for."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from cache_store.codec import describe
from jobs.__main__ import main
from jobs.sample_input import make_sample_input

STEPS = ["--source", "vla", "--encoder", "qwen2_5_vl", "--model", "small", "--json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One episode of eight steps."""
    episodes = make_sample_input(tmp_path_factory.mktemp("sample")).episodes
    one = next(folder for folder in sorted(episodes.rglob("recv_all_*")) if folder.is_dir())
    return Path(shutil.copytree(one, tmp_path_factory.mktemp("data") / "task" / one.name)).parent


@pytest.fixture
def build(local_ray, data, tmp_path, capsys):
    def run(store: str, *options: str, data: Path = data) -> tuple[int, dict]:
        asked = ["build", *STEPS, "--data", str(data), "--store", str(tmp_path / store), *options]
        status = main(asked)
        said = capsys.readouterr().out
        return status, json.loads(said) if said else {}

    return run


def digests(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.glob("*.pt"))}


def test_a_resumed_build_and_a_retry_give_the_files_of_an_undisturbed_one(build, data, tmp_path, capsys):
    assert build("whole", "--micro-batch", "3")[0] == 0
    whole = digests(tmp_path / "whole")
    assert len(whole) == 8
    record = describe(next((tmp_path / "whole").glob("*_vlm*.pt"))).record
    assert record.recipe["encoder"]["batch"].startswith("3 consecutive steps")
    for path in sorted((tmp_path / "whole").glob("*.pt"))[::2]:
        path.unlink()
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    image = sorted(copy.rglob("*.jpg"))[0]
    good = image.read_bytes()
    image.write_bytes(b"no image")
    status, report = build("whole", "--micro-batch", "3", data=copy)
    (failed,) = report["failed"]
    assert (status, report["done"], report["skipped"], failed["stage"]) == (1, 3, 4, "decode")
    image.write_bytes(good)
    assert main(["retry-failed", report["folder"], "--json"]) == 0
    name = failed["key"] + ".pt"
    assert digests(tmp_path / "whole")[name] == whole[name], "the whole group went through with it"


def test_one_step_at_a_time_is_the_plain_build_and_another_batch_is_refused_beside_it(build, data, tmp_path, capsys):
    assert build("plain")[0] == 0
    status, report = build("plain", "--micro-batch", "1")
    assert (status, report["done"], report["skipped"]) == (0, 0, 8)
    asked = ["build", *STEPS, "--data", str(data), "--store", str(tmp_path / "plain"), "--micro-batch", "3"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "batch" in said
    assert "--overwrite" in said


@pytest.mark.parametrize("encoder", ["longva", "huggingface"])
def test_videos_do_not_take_it(encoder, tmp_path, capsys):
    asked = ["--source", "folder", "--encoder", encoder, "--model", "small", "--data", str(tmp_path)]
    assert main(["build", *asked, "--store", str(tmp_path / "store"), "--micro-batch", "4"]) == 2
    assert "--micro-batch means nothing for --source folder" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_plan_measures_a_step_as_its_share_of_a_forward(data, tmp_path, capsys):
    asked = [*STEPS, "--data", str(data), "--store", str(tmp_path / "store"), "--micro-batch", "4", "--probe", "1"]
    assert main(["plan", *asked]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["todo"], plan["probe"]["failed"]) == (8, [])
    assert plan["probe"]["encode_s"] > 0
    assert not (tmp_path / "store").exists()
