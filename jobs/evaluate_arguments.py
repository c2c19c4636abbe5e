"""The arguments of `evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jobs.parsers import Commands, add_command, add_json, store_root
from jobs.sizes import positive_int
from pipeline.sources import BENCHMARKS, parse_media_path

# Not given to argparse, which would hide whether an option was given: beside --resume none may be.
DEFAULTS: dict[str, Any] = {
    "nframe": 128,
    "sampling": "source",
    "dtype": "float16",
    "device_map": "auto",
    "results": Path("results"),
}


def add_evaluate(commands: Commands) -> None:
    """Add the parser of `evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        "Ask models a benchmark's multiple-choice questions, each with the cache and without it, and compare. Choices "
        "are made by the logits of the options' letters. Exit status 0 if every answer has the same bits both ways and "
        "every feature was found; 1 if not, with the questions named.",
        "vlm-cache evaluate --source video-mme --data /data/Video-MME --store /cache/longva \\\n"
        "      --model /models/LongVA-7B --model /models/LongVA-7B-DPO",
        "vlm-cache evaluate --source mvbench --data /data/MVBench --store /cache/small --model small --nframe 16 \\\n"
        "      --first 50 --json",
        "vlm-cache evaluate --resume results/longva_cached_20260314_092301",
    )
    what = parser.add_argument_group("what to ask")
    what.add_argument("--source", choices=tuple(BENCHMARKS), help="the benchmark")
    what.add_argument("--data", type=parse_media_path, metavar="PATH", help="its folder")
    what.add_argument(
        "--annotations",
        type=parse_media_path,
        metavar="FILE_OR_FOLDER",
        help="the questions, where they are not in the data folder",
    )
    what.add_argument("--dataset", metavar="NAME", help="name in the store, instead of the source's own")
    what.add_argument("--first", type=positive_int, metavar="N", help="only the first N multiple-choice questions")

    _add_models(parser)
    where = parser.add_argument_group("where")
    where.add_argument("--store", type=store_root, metavar="ROOT", help="folder or URL of the feature store")
    add_json(where)
    where.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="gets a folder longva_cached_<YYYYmmdd_HHMMSS> with results.parquet, an xlsx for each model, report.html, "
        f"report.json and evaluate.log (default: {DEFAULTS['results']})",
    )
    where.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on in this results folder, with what it was started with: no other option but --json",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    whom = parser.add_argument_group("whom to ask")
    whom.add_argument(
        "--model",
        action="append",
        metavar="PATH_OR_ID|small",
        help="a LongVA checkpoint, which needs the package longva, or the built-in random model: small, or "
        "small:<seed>; may be given several times",
    )
    said = {name: f"(default: {value})" for name, value in DEFAULTS.items()}
    whom.add_argument("--nframe", type=positive_int, metavar="N", help=f"as the build was told {said['nframe']}")
    whom.add_argument("--sampling", metavar="RULE", help=f"as the build was told {said['sampling']}")
    whom.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help=f"of the small model {said['dtype']}")
    whom.add_argument(
        "--device-map", metavar="MAP", help=f"of a checkpoint, as transformers takes it {said['device_map']}"
    )
