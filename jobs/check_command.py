"""`vlm-cache check`: whether cached features are the live ones, on one checkpoint and one video, as a report."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from rich.markup import escape

from cache_store import recipe_fingerprint
from jobs.parity_checks import Check, Subject, run_checks
from jobs.preconditions import check_device
from jobs.printing import print_json, printable, results, table
from jobs.report_files import make_report_folder, new_folder, write_files
from pipeline.encoders import VideoEncoderSpec, load_spec
from pipeline.errors import BuildRefused
from pipeline.version import VERSION, version_of
from pipeline.vision import SamplingRule

_LIBRARIES = ("torch", "transformers", "numpy", "pillow", "av", "decord", "longva")


def check(args: argparse.Namespace) -> int:
    """Run all checks; 0 if none failed and the report is written, else 1."""
    if not args.video.is_file():
        raise BuildRefused(f"{args.video} is no file")
    try:
        sampling = SamplingRule.parse(args.sampling)
    except ValueError as exc:
        raise BuildRefused(f"--sampling: {exc}") from exc
    check_device(args.device)
    spec = cast(VideoEncoderSpec, load_spec(args.encoder, args.model, dtype=args.dtype))
    folder: Path = args.report or new_folder(Path("results"), "check")
    make_report_folder(folder)
    dtype = spec.recipe()["dtype"]
    with tempfile.TemporaryDirectory() as root:
        subject = Subject(
            args.model, spec, args.video, args.nframe, sampling, dtype, device=args.device, root=Path(root) / "store"
        )
        checks = []
        for one in run_checks(subject):
            checks.append(one)
            print(f"{one.outcome}: {one.name}", file=sys.stderr)
        report = _report(args, subject, checks)
    texts = {"check.json": json.dumps(report, indent=1) + "\n", "check.md": _markdown(report)}
    is_written = write_files(folder, texts)
    if args.json:
        print_json(report)
    else:
        made = table(("check", "left"), ("outcome", "left"), ("found", "name"))
        for one in checks:
            made.add_row(one.name, one.outcome, escape(printable(one.found)))
        console = results()
        console.print(made)
        if is_written:
            console.print(printable(f"{folder / 'check.md'}"), markup=False)
    return 0 if is_written and not any(one.outcome == "failed" for one in checks) else 1


def _report(args: argparse.Namespace, subject: Subject, checks: Sequence[Check]) -> dict[str, Any]:
    is_cuda = args.device.startswith("cuda")
    device = torch.cuda.get_device_name(args.device) if is_cuda else torch.backends.cpu.get_cpu_capability()
    return {
        "model": args.model,
        "encoder": args.encoder,
        "video": args.video.name,
        "video_bytes": args.video.stat().st_size,
        "processor": f"{platform.machine()} {device}",
        "versions": {"vlm-cache": VERSION, "python": platform.python_version()} | _versions(),
        "recipe_fingerprint": recipe_fingerprint(subject.recipe),
        "recipe": subject.recipe,
        "checks": [asdict(one) for one in checks],
    }


def _versions() -> dict[str, str]:
    return {name: version_of(name) for name in _LIBRARIES}


def _markdown(report: dict[str, Any]) -> str:
    checks = report["checks"]
    counts = ", ".join(
        f"{sum(one['outcome'] == outcome for one in checks)} {outcome}" for outcome in ("passed", "failed", "skipped")
    )
    facts = {
        "model": f"{report['model']} ({report['encoder']})",
        "video": f"{report['video']}, {report['video_bytes']:,} bytes",
        "processor": report["processor"],
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "recipe": report["recipe_fingerprint"],
    }
    lines = [f"# Parity check: {counts}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    lines += ["", "| check | outcome | found |", "|---|---|---|"]
    lines += [f"| {one['name']} | **{one['outcome']}** | {_cell(one['found'])} |" for one in checks]
    lines += ["", "```json", json.dumps(report["recipe"], indent=1, sort_keys=True), "```", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return printable(text.replace("\n", " ")).replace("|", r"\|")
