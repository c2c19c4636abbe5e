"""The command line: one parser, a subcommand for each job, every flag with its default and an example each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jobs.check_arguments import add_check
from jobs.evaluate_arguments import add_evaluate
from jobs.parsers import Commands, Parser, add_command, add_json, add_store, given_path, whole_text
from jobs.sizes import parse_age, parse_size, positive_int, positive_rate, whole_number
from jobs.store_arguments import add_store_commands
from jobs.stream_arguments import add_stream
from pipeline.sources import STEP_SOURCES, VIDEO_SOURCES
from pipeline.version import VERSION

SOURCES = (*VIDEO_SOURCES, *STEP_SOURCES)
ENCODERS = ("longva", "qwen2_5_vl", "huggingface")
# Of `build` and `plan`. Not given to argparse, which would hide whether an option was given: not every source has each.
BUILD_DEFAULTS: dict[str, Any] = {
    "vlm_reuse_count": 3,
    "action_expert_hz": 10,
    "horizon": 8,
    "nframe": 128,
    "sampling": "source",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `vlm-cache`; the chosen subcommand is in `command`."""
    parser = Parser(
        prog="vlm-cache",
        description="Encode videos and robot episodes once, keep the exact features, read them back everywhere.",
        epilog="exit status: 0 done, 1 some items failed (each is named), 2 wrong usage or refused",
    )
    parser.add_argument("--version", action="version", version=f"vlm-cache {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_build(commands)
    _add_retry_failed(commands)
    _add_report(commands)
    add_evaluate(commands)
    add_check(commands)
    add_store_commands(commands)
    add_stream(commands)
    _add_demo(commands)
    return parser


def _source_name(text: str) -> str:
    """Return a source's name however its benchmark is spelled: `LongVideoBench` and `long_video_bench` too."""
    by_letters = {name.replace("-", ""): name for name in SOURCES}
    return by_letters.get(text.lower().replace("-", "").replace("_", ""), text)


def _add_plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        "Tell what a build with the same options would do, and build nothing: units, bytes, device-hours, whether it "
        "fits, and what it would evict. A few units are decoded and encoded to measure them, and the store is left as "
        "it is. Exit status 1 if the build would not fit, or if something is impossible.",
        "vlm-cache plan --source video-mme --data /data/Video-MME --encoder longva \\\n"
        "      --model /models/LongVA-7B --store /cache/longva --limit 200GiB --lanes 8",
        "vlm-cache plan --probe 0 --source vla --data /data/insertion --encoder qwen2_5_vl \\\n"
        "      --model Qwen/Qwen2.5-VL-3B-Instruct --store /cache/vla --json",
    )
    parser.add_argument(
        "--probe", type=whole_number, default=3, metavar="N", help="units to decode and encode; 0: none, and no times"
    )
    _add_build_options(parser)


def _add_build(commands: Commands) -> None:
    parser = add_command(
        commands,
        "build",
        "Encode what the store does not hold yet. The same command again resumes, and skips what is done.",
        "vlm-cache build --source video-mme --data /data/Video-MME --encoder longva \\\n"
        "      --model /models/LongVA-7B --store /cache/longva --limit 200GiB",
        "vlm-cache build --source mvbench --data /hub/datasets--OpenGVLab--MVBench/snapshots/REV \\\n"
        "      --encoder longva --model /models/LongVA-7B --store /cache/longva --report /runs/mvbench",
        "vlm-cache build --source folder --data s3://bucket/videos --encoder huggingface \\\n"
        "      --model google/siglip-base-patch16-224 --store /cache/siglip",
        "vlm-cache build --source vla --data /data/insertion --encoder qwen2_5_vl \\\n"
        "      --model Qwen/Qwen2.5-VL-3B-Instruct --store /cache/vla",
        "vlm-cache build --source video-mme --data /data/Video-MME --encoder longva \\\n"
        "      --model /models/LongVA-7B --store /cache/longva --store-dtype int8",
    )
    _add_build_options(parser)


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    said = {name: f"(default: {value})" for name, value in BUILD_DEFAULTS.items()}
    what = parser.add_argument_group("what to encode")
    what.add_argument("--source", required=True, type=_source_name, choices=SOURCES, help="how the input is laid out")
    what.add_argument(
        "--data",
        required=True,
        type=given_path,
        metavar="PATH_OR_URL",
        help="folder of the input: here, a Hugging Face snapshot, or a URL that fsspec lists (not for vla)",
    )
    what.add_argument(
        "--annotations",
        type=given_path,
        metavar="FILE_OR_FOLDER",
        help="benchmarks: the questions, where they are not in the data folder: parquet, JSON, TSV or CSV",
    )
    what.add_argument("--dataset", metavar="NAME", help="name in the store, instead of the source's own")
    what.add_argument(
        "--instruction", type=whole_text, metavar="TEXT", help="vla, lerobot: instead of the episodes' own"
    )
    what.add_argument("--views", metavar="A,B", help="vla, lerobot: only these cameras")
    what.add_argument(
        "--vlm-reuse-count",
        type=positive_int,
        metavar="N",
        help=f"vla, lerobot: samples that share a VLM step {said['vlm_reuse_count']}",
    )
    what.add_argument(
        "--action-expert-hz",
        type=positive_int,
        metavar="HZ",
        help=f"vla: rate of the actions {said['action_expert_hz']}",
    )
    what.add_argument(
        "--horizon",
        type=positive_int,
        metavar="N",
        help=f"vla, old format: actions of a sample {said['horizon']}",
    )

    how = parser.add_argument_group("how to encode (all of it is part of the recipe)")
    how.add_argument("--encoder", required=True, choices=ENCODERS, help="encoder family")
    how.add_argument(
        "--model",
        required=True,
        metavar="PATH_OR_ID|small",
        help="checkpoint folder, hub id, or the built-in random model",
    )
    how.add_argument("--revision", metavar="REV", help="revision of a hub id")
    how.add_argument("--nframe", type=positive_int, metavar="N", help=f"videos: frames of one at most {said['nframe']}")
    how.add_argument(
        "--sampling",
        metavar="RULE",
        help=f"videos: source, longva, lmms-eval-pyav, vlmevalkit or fps:<rate> {said['sampling']}",
    )
    how.add_argument(
        "--allow-partial",
        action="store_true",
        help="videos: a damaged one gives the frames that it still holds, and its feature says so; else it fails",
    )
    how.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the tower; longva: float16, others: the checkpoint's own",
    )
    how.add_argument(
        "--store-dtype",
        choices=("int8",),
        help="videos: keep features in half the space of float16, with a scale for each token, instead of as the tower "
        "gives them; what that loses is measured and told by show and stats, and who asks for exact features does not "
        "get these",
    )
    how.add_argument(
        "--frames-per-forward", type=positive_int, metavar="N", help="instead of a whole video in one forward"
    )
    how.add_argument(
        "--micro-batch",
        type=positive_int,
        metavar="N",
        help="qwen2_5_vl: N consecutive steps of an episode in one forward, padded, instead of one; where some of them "
        "are missing in the store, all are encoded again, so that bits stay the same",
    )
    how.add_argument(
        "--compile",
        action="store_true",
        help="let torch compile the tower: other last bits, and part of the recipe; each number of frames is compiled "
        "by itself, once in each process, which takes up to some minutes",
    )

    where = parser.add_argument_group("where")
    add_store(where)
    where.add_argument(
        "--limit",
        type=parse_size,
        metavar="SIZE",
        help="size limit of the store, kept for later: 50GiB; 0 lifts it. A build that takes more, beside what is "
        "pinned of other data sets, is refused before it starts, and the limit stays as it was; of videos shorter than "
        "--nframe their real length counts",
    )
    where.add_argument(
        "--soft-limit",
        type=parse_size,
        metavar="SIZE",
        help="where eviction begins, below the limit, so that no writer waits for it; kept for later, 0 lifts it",
    )
    where.add_argument(
        "--allow-eviction",
        action="store_true",
        help="build although the whole exceeds the limit: the least recently used features go, this build's own too",
    )
    where.add_argument("--overwrite", action="store_true", help="build again what the store already holds")
    where.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write build.json, run.jsonl, failed.jsonl, report.json and a benchmark's questions.parquet there, "
        "instead of into ROOT/.vlm-cache/runs/; refused while another build writes there",
    )

    cluster = parser.add_argument_group("Ray")
    cluster.add_argument("--address", metavar="ADDRESS", help="cluster to join, else $RAY_ADDRESS, else this machine")
    cluster.add_argument(
        "--lanes", type=positive_int, metavar="N", help="encoders at once; one per GPU, or one on the CPU"
    )
    cluster.add_argument(
        "--decoders-per-lane", type=positive_int, metavar="N", help="instead of as many as each encoder needs"
    )
    cluster.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto takes GPUs where there are any"
    )
    cluster.add_argument(
        "--fetch-limit",
        type=parse_size,
        default="8GiB",
        metavar="SIZE",
        help="--data URL: what a decoder keeps of it in the temporary folder at most",
    )
    for stage, name, default, note in (
        ("decode", "unit", "10m", ", fetching included"),
        ("encode", "encode", "30m", ""),
        ("write", "write", "10m", ""),
    ):
        cluster.add_argument(
            f"--{name}-timeout",
            type=parse_age,
            default=default,
            metavar="AGE",
            help=f"longest {stage} of one unit{note}",
        )


def _add_retry_failed(commands: Commands) -> None:
    parser = add_command(
        commands,
        "retry-failed",
        "Build again exactly the units that failed in an earlier build, with the same arguments. Refused if the same "
        "arguments mean other features today.",
        "vlm-cache retry-failed /cache/longva/.vlm-cache/runs/0d9c6f0e5b0f4b6c8b1f0a4f7c2d9e31",
    )
    parser.add_argument(
        "run", type=Path, metavar="DIR|FILE", help="the folder of that build's report, or its failed.jsonl"
    )
    parser.add_argument("--address", metavar="ADDRESS", help="cluster to join, instead of where that build ran")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write this run's report there, not where that one is"
    )
    add_json(parser)


def _add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        "Draw a build's run: timeline of the lanes, throughput against the bare model, failures, slowest units. Takes "
        "the folder of a build that ended, was killed, or is at work.",
        "vlm-cache report /cache/longva/.vlm-cache/runs/0d9c6f0e5b0f4b6c8b1f0a4f7c2d9e31",
        "vlm-cache report /runs/mvbench --bare 3.2 --html mvbench.html",
        "vlm-cache report /runs/mvbench --json",
    )
    parser.add_argument("run", type=Path, metavar="DIR", help="the folder of that build's report")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes, instead of DIR/report.html")
    parser.add_argument(
        "--bare",
        type=positive_rate,
        metavar="UNITS_PER_S",
        help="what the bare model's loop does on one lane's device, to compare with; else the encoders' own pace",
    )
    parser.add_argument("--json", action="store_true", help="print the figures; no page without --html")


def _add_demo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        "Make sample videos and robot episodes, build both caches with small random models, read them back.",
        "vlm-cache demo --folder demo_run",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo_run"), metavar="DIR", help="where; made anew each time"
    )
