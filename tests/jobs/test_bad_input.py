"""Wrong usage gets exit status 2 and a message that says what to change, before Ray starts."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

import jobs.build_command
from cache_store import FeatureStore, StepKey, plans
from jobs.__main__ import main
from jobs.run_folder import RunFolder
from pipeline.errors import BuildRefused
from tests.media import write_new_episode, write_video

PLAIN = ["--source", "folder", "--encoder", "longva", "--model", "small", "--nframe", "4"]


@pytest.fixture
def videos(tmp_path) -> Path:
    write_video(tmp_path / "videos" / "a.mp4")
    return tmp_path / "videos"


@pytest.fixture
def refused(tmp_path, capsys):
    """Run a build that must be refused; returns what it said."""

    def run(**changes: object) -> str:
        options: dict[str, object] = {
            "source": "folder",
            "data": tmp_path / "videos",
            "encoder": "longva",
            "model": "small",
            "store": tmp_path / "store",
            **changes,
        }
        argv = ["build"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        ray_was_up = ray.is_initialized()
        try:
            status = main(argv)
        except SystemExit as exc:
            status = exc.code
        said = capsys.readouterr().err
        assert status == 2, said
        assert "Traceback" not in said
        assert ray.is_initialized() == ray_was_up
        return said

    return run


def test_missing_folder(refused, tmp_path):
    assert str(tmp_path / "nowhere") in refused(data=tmp_path / "nowhere")


def test_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(data=tmp_path / "empty")


def test_an_unknown_source_names_those_there_are(refused, videos):
    said = refused(source="videomm")
    assert "videomm" in said
    assert "long-video-bench" in said


def test_a_url_that_cannot_be_listed(refused):
    assert "nosuch://bucket/set" in refused(data="nosuch://bucket/set")


@pytest.mark.parametrize("option", ["store", "data", "annotations"])
def test_what_no_other_process_sees(refused, videos, option):
    assert f"--{option} memory://x/y is seen by one process alone" in refused(**{option: "memory://x/y"})


def test_annotations_mean_nothing_for_a_folder(refused, videos, tmp_path):
    assert "--annotations" in refused(annotations=tmp_path / "rows.json")


def test_a_table_of_questions_that_cannot_be_written(refused, videos, tmp_path):
    (tmp_path / "videos" / "rows.json").write_text('[{"videoID": "a"}]')
    (tmp_path / "report").write_text("a file")
    assert "--report" in refused(source="video-mme", report=tmp_path / "report")


def test_unknown_encoder_names_those_there_are(refused, videos):
    said = refused(encoder="longvla")
    assert "longvla" in said
    assert "qwen2_5_vl" in said


def test_unknown_sampling_rule_names_those_there_are(refused, videos):
    said = refused(sampling="every-nth")
    assert "every-nth" in said
    assert "vlmevalkit" in said


@pytest.mark.parametrize("name", ["a/b", "..", "../up", ".hidden", "x@1234", ""])
def test_a_data_set_name_that_is_no_folder_name(refused, videos, name):
    refused(dataset=name)


def test_a_folder_named_by_a_harness_alias_is_built_under_the_canonical_name(tmp_path, local_ray):
    write_video(tmp_path / "Video-MME_128frame" / "a.mp4", frames=4)
    arguments = ["--source", "folder", "--data", str(tmp_path / "Video-MME_128frame"), "--encoder", "longva"]
    assert main(["build", *arguments, "--model", "small", "--store", str(tmp_path / "store")]) == 0
    assert [path.parent.name for path in (tmp_path / "store").rglob("*.pt")] == ["Video-MME"]


def test_a_limit_below_one_feature(refused, videos):
    said = refused(limit="1KiB")
    assert "limit" in said
    assert "1.00 KiB" in said


def test_a_checkpoint_without_a_tower(refused, videos, tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11, n_positions=8)).save_pretrained(tmp_path / "gpt")
    assert "tower" in refused(model=tmp_path / "gpt")


def test_a_model_folder_that_is_not_there(refused, videos, tmp_path):
    assert "no-such-model" in refused(model=tmp_path / "no-such-model")


def test_an_encoder_that_does_not_fit_the_source(refused, videos):
    said = refused(encoder="qwen2_5_vl")
    assert "folder" in said
    assert "longva" in said


def test_an_option_that_the_source_would_ignore(refused, videos):
    assert "--instruction" in refused(instruction="pick it up")


def test_parts_of_videos_mean_nothing_to_robot_episodes(tmp_path, capsys):
    what = ["--source", "vla", "--data", str(tmp_path), "--encoder", "qwen2_5_vl", "--model", "small"]
    assert main(["build", *what, "--store", str(tmp_path / "store"), "--allow-partial"]) == 2
    assert "--allow-partial means nothing for --source vla" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "plan"])
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("vla", {"--nframe": "8", "--sampling": "longva"}),
        ("lerobot", {"--nframe": "8", "--sampling": "longva", "--horizon": "8", "--action-expert-hz": "10"}),
        ("folder", {"--vlm-reuse-count": "3", "--horizon": "4", "--action-expert-hz": "5"}),
    ],
)
def test_options_of_another_kind_of_source_are_refused_also_with_their_defaults(
    tmp_path, capsys, command, source, options
):
    encoder = "longva" if source == "folder" else "qwen2_5_vl"
    what = ["--source", source, "--data", str(tmp_path), "--encoder", encoder, "--model", "small"]
    for flag, value in options.items():
        assert main([command, *what, "--store", str(tmp_path / "store"), flag, value]) == 2
        assert f"{flag} means nothing for --source {source}" in capsys.readouterr().err


def test_a_revision_of_what_is_no_hub_id_is_refused(refused, videos, tmp_path):
    assert "--revision means nothing for --model small" in refused(revision="main")
    assert f"--revision means nothing for --model {tmp_path}" in refused(model=tmp_path, revision="main")


def test_help_tells_the_defaults_of_a_build(capsys):
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "share a VLM step (default: 3)",
        "actions (default: 10)",
        "sample (default: 8)",
        "most (default: 128)",
    ):
        assert words in said
    assert "fps:<rate> (default: source)" in said


def test_two_videos_under_one_id_are_both_named(refused, videos):
    write_video(videos / "a.mkv")
    said = refused()
    assert "a.mp4" in said
    assert "a.mkv" in said


def test_two_episodes_of_one_name_are_both_named(refused, tmp_path):
    for parent in ("first", "second"):
        write_new_episode(tmp_path / "robots" / parent / "episode_1")
    said = refused(source="vla", data=tmp_path / "robots", encoder="qwen2_5_vl")
    assert "first" in said
    assert "second" in said


def test_a_store_that_is_a_file(refused, videos, tmp_path):
    (tmp_path / "file").write_text("not a store")
    assert str(tmp_path / "file") in refused(store=tmp_path / "file")


def build_in_its_own_process(*options: str, videos: Path, **run: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", "build", "--source", "folder", "--data", str(videos)]
    command += ["--encoder", "longva", "--model", "small", *options]
    return subprocess.run(command, capture_output=True, text=True, **run)


def test_no_ray_cluster_at_the_address(videos, tmp_path):
    done = build_in_its_own_process("--store", str(tmp_path / "store"), "--address", "127.0.0.1:1", videos=videos)
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def without_roots_power_to_write_everywhere() -> None:
    """Before the child's exec: take CAP_DAC_OVERRIDE (1) out of its bounding set (PR_CAPBSET_DROP, 24)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_no_write_permission(videos, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    options = ["--store", str(locked / "store")]
    done = build_in_its_own_process(*options, videos=videos, preexec_fn=without_roots_power_to_write_everywhere)
    assert done.returncode == 2, done.stderr
    assert str(locked) in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_an_example_of_every_command(capsys):
    for name in ("build", "stats", "ls", "show", "verify", "prune", "pin", "clear", "demo"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert "\nexample" in said
        assert f"vlm-cache {name}" in said


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("vlm-cache 0.")


def test_clear_without_yes_deletes_nothing(tmp_path, capsys):
    import torch

    from cache_store import FeatureStore, StepKey

    with FeatureStore(tmp_path / "store") as store:
        store.put(StepKey("episode_1", 0), torch.zeros(1, 1, 4, dtype=torch.float16))
    assert main(["clear", "--store", str(tmp_path / "store")]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["clear", "--store", str(tmp_path / "store"), "--yes"]) == 0
    assert not list((tmp_path / "store").rglob("*.pt"))


def test_a_build_larger_than_the_limit_is_refused_with_both_numbers_and_ways_out(refused, videos):
    for name in "bcdef":
        write_video(videos / f"{name}.mp4")
    said = refused(limit="300KiB", nframe=16)
    assert "this build takes 4" in said
    assert "300 KiB" in said
    assert "6 features" in said
    assert "--allow-eviction" in said


def test_a_build_of_short_videos_is_not_refused_for_frames_that_they_do_not_have(tmp_path, local_ray):
    write_video(tmp_path / "videos" / "a.mp4", frames=4)
    arguments = ["--source", "folder", "--data", str(tmp_path / "videos"), "--encoder", "longva", "--model", "small"]
    assert main(["build", *arguments, "--store", str(tmp_path / "store"), "--limit", "100KiB", "--nframe", "128"]) == 0


def test_a_build_that_may_evict_keeps_what_it_built_last(tmp_path, local_ray, capsys):
    for name in "abcdef":
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=16)
    arguments = ["--source", "folder", "--data", str(tmp_path / "videos"), "--encoder", "longva", "--model", "small"]
    arguments += ["--store", str(tmp_path / "store"), "--nframe", "16", "--limit", "300KiB"]
    assert main(["build", *arguments]) == 2
    assert main(["build", *arguments, "--allow-eviction"]) == 0
    kept = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.pt"))
    assert 0 < kept <= 300 * 1024


def test_a_soft_limit_above_the_limit(refused, videos):
    assert "soft limit" in refused(limit="1GiB", soft_limit="2GiB")


LIMITS = {"limit": "300KiB", "nframe": 16}  # one video of 16 frames takes less, six take more


def remembered_limit(root) -> int | None:
    with FeatureStore(root) as store:
        return store.limit_bytes


@pytest.mark.parametrize("limits", [{"limit": "1KiB"}, LIMITS])
@pytest.mark.parametrize("before", [None, 10**9])
def test_a_refused_build_leaves_the_limit_as_it_was(refused, videos, tmp_path, limits, before):
    for name in "bcdef":
        write_video(videos / f"{name}.mp4")
    if before is not None:
        FeatureStore(tmp_path / "store", limit_bytes=before).close()
    refused(**limits)
    assert remembered_limit(tmp_path / "store") == before


@pytest.mark.parametrize("reason", ["another device", "a report at work"])
def test_a_build_that_is_refused_last_leaves_limit_plan_and_dead_letters(refused, videos, tmp_path, local_ray, reason):
    FeatureStore(tmp_path / "store", limit_bytes=10**9).close()
    report = tmp_path / "report"
    report.mkdir()
    (report / "failed.jsonl").write_text("a dead letter\n")
    (report / "report.json").write_text("{}")
    if reason == "another device":
        assert "has no GPU" in refused(**LIMITS, report=report, device="gpu")
    else:
        with closing(RunFolder.asked_for(report)):
            assert "a build at work writes to" in refused(**LIMITS, report=report)
    assert remembered_limit(tmp_path / "store") == 10**9
    assert plans.titles(tmp_path / "store") == []
    assert sorted(path.name for path in report.iterdir()) == ["failed.jsonl", "report.json"]
    assert (report / "failed.jsonl").read_text() == "a dead letter\n"


@pytest.fixture
def stop_before_ray(monkeypatch):
    """Stops where the lanes would start, for builds that pass every check before it."""

    def run_build(*_: object, begin: Callable[[], object], **__: object) -> None:
        begin()
        raise BuildRefused("every check is passed")

    monkeypatch.setattr("jobs.build_command.run_build", run_build)


def test_a_build_that_is_not_refused_for_its_size_has_its_limits_remembered(refused, videos, tmp_path, stop_before_ray):
    assert "passed" in refused(**LIMITS, soft_limit="200KiB")
    with FeatureStore(tmp_path / "store") as store:
        assert (store.limit_bytes, store.soft_limit_bytes) == (300 << 10, 200 << 10)


@pytest.fixture
def other(tmp_path):
    """A store with a feature of 256 KiB of another data set."""
    import torch

    with FeatureStore(tmp_path / "store") as store:
        store.put(StepKey("other_episode", 0), torch.zeros(1, 1, 1 << 17, dtype=torch.float16))
        yield store


def test_what_is_pinned_of_other_data_sets_is_not_counted_as_room(refused, videos, other, stop_before_ray):
    assert "passed" in refused(**LIMITS)
    pinned = other.pin(["other_*"])
    said = refused(**LIMITS)
    assert "limit is 300 KiB, of which other features that are pinned or being read take 257 KiB" in said
    assert "leave 42.5 KiB" in said
    assert "pin --list" in said
    assert "passed" in refused(limit="400KiB", nframe=16)
    other.unpin(pinned.id)
    with other.reading(keys=[StepKey("other_episode", 0)]):
        assert "being read" in refused(**LIMITS)
    assert "passed" in refused(**LIMITS)


def test_a_build_that_may_evict_is_refused_only_if_pins_leave_no_room_for_one_feature(
    refused, videos, other, stop_before_ray, capsys
):
    other.pin(["other_*"])
    assert "passed" in refused(**LIMITS, allow_eviction=True)
    said = refused(limit="260KiB", nframe=16, allow_eviction=True)
    assert "one frame's feature takes" in said
    assert "pinned" in said


@pytest.mark.parametrize("option", ["data", "store", "annotations"])
def test_an_empty_path_is_not_the_folder_that_one_is_in(refused, videos, option):
    assert f"--{option}: an empty path" in refused(**{option: ""})


@pytest.mark.parametrize(("option", "value"), [("lanes", 0), ("nframe", -3), ("limit", "much"), ("source", "web")])
def test_wrong_usage_is_told_in_one_line(refused, videos, option, value):
    said = refused(**{option: value})
    assert said.count("\n") == 1
    assert f"--{option}" in said


def test_an_instruction_that_is_no_text(refused):
    said = refused(source="vla", encoder="qwen2_5_vl", instruction=os.fsdecode(b"\xff pick"))
    assert r"--instruction: '\udcff pick' is no text" in said


@pytest.mark.parametrize("command", ["stats --store s", "stream delayed --model small --video v"])
def test_an_unknown_option_is_refused_by_the_command_that_does_not_know_it(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--out", "x"])
    name = command.partition(" --")[0]
    assert caught.value.code == 2
    said = f"vlm-cache {name}: unrecognized arguments: --out x; vlm-cache {name} --help lists the options\n"
    assert capsys.readouterr().err == said


def test_an_interrupt_while_libraries_load_is_told_in_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.arguments.make_parser", interrupted)
    assert main(["stats"]) == 130
    assert capsys.readouterr().err == "vlm-cache: interrupted\n"


def test_ray_that_is_late_and_does_not_start(videos, tmp_path):
    """Ray's own error has no class by which it could be told."""
    store = str(tmp_path / "store")
    code = (
        "import ray, sys, threading\n"
        "from jobs.__main__ import main\n"
        "from pipeline.lanes import cluster\n"
        "cluster.LATE_S, warn, told = 0.01, cluster.logger.warning, threading.Event()\n"
        "cluster.logger.warning = lambda *words: (warn(*words), told.set())\n"
        "def init(**_): raise Exception(f'The current node timed out during startup, told: {told.wait(60)}.')\n"
        "ray.init = init\n"
        f"sys.exit(main({['build', *PLAIN, '--data', str(videos), '--store', store]!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    late, last = done.stderr.splitlines()[-2:]
    assert late.startswith("Ray has not come up for 0.01 s and is waited for; its logs: session_latest/logs")
    assert last.endswith("this machine: The current node timed out during startup, told: True.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("mode", "hint"), [("token", ""), (None, "; if it asks for a token, set RAY_AUTH_MODE=token")])
def test_a_cluster_that_cannot_be_joined(videos, tmp_path, monkeypatch, refused, mode, hint):
    def init(**_):
        raise ConnectionError("Failed to connect")

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    said = refused(address="auto")
    assert said.endswith(f"no Ray cluster to use at auto: Failed to connect{hint}\n")


def test_what_ray_tells_of_on_stdout_is_no_part_of_the_result(videos, tmp_path, local_ray, capsys, monkeypatch):
    real = jobs.build_command.run_build

    def run_build(*arguments, **options):
        print("(raylet) A worker died or was killed while executing a task by an unexpected system error.")
        return real(*arguments, **options)

    monkeypatch.setattr("jobs.build_command.run_build", run_build)
    assert main(["build", *PLAIN, "--data", str(videos), "--store", str(tmp_path / "store"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["done"] == 1
    assert "(raylet)" in said.err


def test_a_file_name_that_is_no_text_fails_alone(videos, tmp_path, local_ray, capsys):
    os.link(videos / "a.mp4", os.fsencode(videos) + b"/\xff.mp4")
    assert main(["build", *PLAIN, "--data", str(videos), "--store", str(tmp_path / "store"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["done"], [failure["stage"] for failure in report["failed"]]) == (1, ["source"])
    assert "UTF-8" in report["failed"][0]["reason"]


@pytest.mark.parametrize("output", [[], ["--json"]])
def test_a_reason_that_is_no_text_stays_that_of_its_episode(tmp_path, local_ray, capsys, output):
    for number in range(2):
        write_new_episode(tmp_path / "task" / f"episode_{number}", poses=20)
    metadata = {"camera_views": ["x\ud83d", "left"]}
    (tmp_path / "task/episode_0/metadata.json").write_text(json.dumps(metadata))
    asked = ["--source", "vla", "--data", tmp_path / "task", "--encoder", "qwen2_5_vl", "--model", "small"]
    where = ["--store", tmp_path / "store", "--report", tmp_path / "run"]
    assert main(["build", *map(str, [*asked, *where]), *output]) == 1
    assert r"x\ud83d" in capsys.readouterr().out
    for name in ("report.json", "failed.jsonl", "run.jsonl"):
        assert r"x\ud83d" in (tmp_path / "run" / name).read_text()
    assert json.loads((tmp_path / "run/report.json").read_text())["done"] > 0


def test_a_refusal_obeys_no_name(refused, videos):
    for name in ("x\x1b[2J.mp4", "x\x1b[2J.mkv"):
        os.link(videos / "a.mp4", videos / name)
    said = refused()
    assert "\x1b" not in said
    assert said.count("x\\x1b[2J.mkv") == 1
