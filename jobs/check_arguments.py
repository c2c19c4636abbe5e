"""The arguments of `check`."""

from __future__ import annotations

from pathlib import Path

from jobs.parsers import Commands, add_command, add_json
from jobs.sizes import positive_int


def add_check(commands: Commands) -> None:
    """Add the parser of `check`."""
    parser = add_command(
        commands,
        "check",
        "Check on one checkpoint and one video that cached features are the live ones: decoders, preprocessing, "
        "tower, store, and a model's answer with and without the cache. Writes check.md and check.json, to attach to a "
        "report. Exit status 1 if a check fails.",
        "vlm-cache check --model /models/LongVA-7B --video /data/Video-MME/video/fFjv93ACGo8.mp4",
        "vlm-cache check --model small --video clip.mp4 --nframe 16 --report /tmp/check --json",
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH_OR_ID|small", help="checkpoint folder, hub id, or the built-in model"
    )
    parser.add_argument("--video", required=True, type=Path, metavar="FILE", help="any video")
    parser.add_argument("--encoder", choices=("longva", "huggingface"), default="longva", help="encoder family")
    parser.add_argument("--nframe", type=positive_int, default=128, metavar="N", help="frames of the video at most")
    parser.add_argument(
        "--sampling", default="source", metavar="RULE", help="source, longva, lmms-eval-pyav, vlmevalkit or fps:<rate>"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the tower; longva: float16, huggingface: the checkpoint's own",
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="of the tower: cpu, cuda:0")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="where the report goes, instead of results/check_<YYYYmmdd_HHMMSS>"
    )
    add_json(parser)
