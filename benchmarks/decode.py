"""`python -m benchmarks.decode`: 128 frames of each video through us and through each decoder alone, in turns.

Times are CPU seconds of all threads: in a build many decoders share the cores, so that is what a video costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode_files import FILES, QUICK_FILES, Generated, generate
from benchmarks.store import machine
from benchmarks.store.document import PAGE, replaced, section
from benchmarks.store.report import Line, Row, table, to_json
from benchmarks.store.timing import Contestant, interleaved_s, median, ratios_to, seconds_of
from pipeline.errors import MediaError
from pipeline.vision import SamplingRule
from pipeline.vision.decord_reader import DecordReader
from pipeline.vision.media_file import MediaFile
from pipeline.vision.open_video import OpenVideo
from pipeline.vision.survey import Survey, survey_video

SAMPLES = 128
MOST_RATIO = 1.05
TURN_S = 0.04  # a turn repeats its work for about this long, so that a small file's time is no noise
HOPELESS = 5.0  # who takes this many times as long as we do in one run need not take turns
OURS = "ours"
PACKAGES = ("av", "decord", "torchcodec", "numpy")
_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg")


# Each uint8 [h, w, 3] RGB; a list or one array, as its library hands them over.
Frames = Sequence[np.ndarray] | np.ndarray


def indices_of(num_frames: int) -> list[int]:
    """The frames that rule `source` samples."""
    return SamplingRule.parse("source").indices(num_frames, count=SAMPLES, fps=1.0)


def by_decord(path: Path) -> Frames:
    """As the evaluation harnesses do, with one thread."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(os.fspath(path), num_threads=1)
    frames: np.ndarray = reader.get_batch(indices_of(len(reader))).asnumpy()
    return frames


def by_pyav_reading(path: Path) -> Frames:
    """Decode all frames up to the last one that is needed, as the harnesses' PyAV path does, with one thread."""
    with MediaFile.open(path) as media:
        count = media.stream.frames or survey_video(path).num_frames
        wanted = indices_of(count)
        chosen, found = set(wanted), []
        for place, frame in enumerate(media.container.decode(media.stream)):
            if place in chosen:
                found.append(frame.to_ndarray(format="rgb24", threads=1))
            if place == wanted[-1]:
                break
    return found


def by_pyav_seeking(path: Path) -> Frames:
    """Seek to the keyframe before each needed frame, and decode up to it, with one thread."""
    with MediaFile.open(path) as media:
        packets = [packet for packet in media.container.demux(media.stream) if packet.size and not packet.is_discard]
        times = sorted(packet.pts for packet in packets)
        found = []
        for index in indices_of(len(times)):
            media.container.seek(times[index], stream=media.stream)
            frames = media.container.decode(media.stream)
            found.append(next(f for f in frames if f.pts >= times[index]).to_ndarray(format="rgb24", threads=1))
    return found


def by_torchcodec(path: Path) -> Frames:
    """With its exact index of the file (its default) and one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(os.fspath(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    frames: np.ndarray = decoder.get_frames_at(indices_of(len(decoder))).data.numpy()
    return frames


ALONE: dict[str, Callable[[Path], Frames]] = {
    "decord": by_decord,
    "PyAV reading": by_pyav_reading,
    "PyAV seeking": by_pyav_seeking,
    "torchcodec": by_torchcodec,
}


def by_us(path: Path) -> Frames:
    """What a build does up to the full-size frames, which it hands to the resizer one by one."""
    video = OpenVideo(path)
    indices = indices_of(video.survey.num_frames)
    return video.first_that_succeeds(lambda reader: list(reader.frames(indices)))[0]


def measured(path: Path, name: str, *, rounds: int) -> Line | None:
    """Time one video; None for a file without frames. The best is the fastest on the median with our very frames.

    Raises:
        RuntimeError: decord gives other frames in a file in which its seeks are trusted.
    """
    try:
        survey = survey_video(path)
        reference = by_us(path)
    except MediaError:
        return None
    notes, contestants = [], [_contestant(OURS, lambda: by_us(path))]
    ours_s = seconds_of(lambda: by_us(path), time.process_time)
    for other, decode in ALONE.items():
        problem = _difference(decode, path, reference)
        if problem and other == "decord" and _is_trusted(path, survey):
            raise RuntimeError(f"{name}: decord is trusted here, and gives {problem}")
        times = 1.0 if problem else seconds_of(lambda decode=decode: decode(path), time.process_time) / ours_s  # type: ignore[misc]
        if problem or times > HOPELESS:
            notes.append(f"{other}: {problem or f'{times:.0f} in one run'}")
        else:
            contestants.append(_contestant(other, lambda decode=decode: decode(path)))  # type: ignore[misc]
    del reference
    times_s = interleaved_s(contestants, rounds=rounds, clock=time.process_time)
    return _line(name, times_s, notes)


def _line(name: str, times_s: dict[str, list[float]], notes: list[str]) -> Line:
    """Our time and its ratio to the best of the others; the others' ratios to us and their failures are noted."""
    others = {other: median(found) for other, found in times_s.items() if other != OURS}
    if not others:
        return Line(name, median(times_s[OURS]) * 1e3, note="; ".join(notes))
    best = min(others, key=lambda other: others[other])
    ratios = ratios_to(best, times_s)[OURS]
    ours_s = median(times_s[OURS])
    compared = [f"{other} {time_s / ours_s:.2f}" for other, time_s in others.items()]
    return Line(
        name,
        ours_s * 1e3,
        median(ratios),
        min(ratios),
        max(ratios),
        most_ratio=MOST_RATIO,
        note="; ".join([", ".join(compared), *notes]),
    )


def _contestant(name: str, run: Callable[[], object]) -> Contestant:
    repeats = max(1, round(TURN_S / max(seconds_of(run, time.process_time), 1e-6)))

    def turn(_: int) -> None:
        for _ in range(repeats):
            run()

    return Contestant(name, repeats, turn)


def _difference(decode: Callable[[Path], Frames], path: Path, reference: Frames) -> str:
    """Why a decoder's result does not count here, in a few words; "" if it is bit for bit ours."""
    try:
        frames = decode(path)
    except ImportError:
        return "not installed"
    except Exception as exc:  # noqa: BLE001 - decoders raise what they like; a file they cannot read is a result
        return f"fails ({type(exc).__name__})"
    if [frame.shape for frame in frames] != [frame.shape for frame in reference]:
        return "other frames"
    worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(frames, reference, strict=True))
    return f"other frames (by {worst} of 255)" if worst else ""


def _is_trusted(path: Path, survey: Survey) -> bool:
    try:
        return bool(next(DecordReader(path, survey).frames([0])).size)
    except MediaError:
        return False


def real_row(folder: Path, rounds: int, only: str | None) -> Row:
    """One line for each video below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES]
    files = [(path, path.name) for path in paths if only is None or only in path.name]
    return _row("real-files", f"Up to {SAMPLES} frames of each real video", files, rounds)


def generated_row(folder: Path, files: Sequence[Generated], rounds: int) -> Row:
    """One line for each video that we make: its groups of pictures and sizes are what differs."""
    made = [(generate(folder, file), file.title) for file in files]
    return _row("generated-files", f"{SAMPLES} frames of generated videos", made, rounds)


def _row(name: str, title: str, files: Sequence[tuple[Path, str]], rounds: int) -> Row:
    lines = []
    for path, label in files:
        print(f"measuring {label} ...", file=sys.stderr, flush=True)
        line = measured(path, label, rounds=rounds)
        if line is not None:
            lines.append(line)
    judged = [line for line in lines if line.ratio is not None]
    met = sum(line.verdict == "pass" for line in judged)
    remarks = [f"{met} of {len(judged)} videos meet the target."]
    if judged:
        total = sum(line.value or 0 for line in judged)
        best = sum((line.value or 0) / (line.ratio or 1) for line in judged)
        remarks.append(f"All of them together: {total:,.0f} ms against {best:,.0f} ms of the best of each.")
    return Row(name, title, "CPU ms", lines, remarks)


def record(fields: dict[str, Any], docs: Path) -> None:
    """Write the figures into the marked section of docs/benchmarks.md, and beside it as JSON."""
    page = docs / PAGE
    page.write_text(replaced(page.read_text(), section(fields), target="bench-decode"))
    (docs / "benchmarks-decode.json").write_text(json.dumps(fields, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 even where a target is missed, because a figure is no failure of the run."""
    options = _parser().parse_args(arguments)
    rows = []
    if options.data is not None:
        rows.append(real_row(options.data, options.rounds, options.only))
    if options.only is None:
        with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
            files = QUICK_FILES if options.quick else FILES
            rows.append(generated_row(Path(folder), files, options.rounds))
    facts = machine.described(Path(tempfile.gettempdir()), PACKAGES)
    for row in rows:
        print(table(row), end="\n\n")
    print("   ".join(f"{name}: {fact}" for name, fact in facts.items()))
    fields = to_json(rows, facts, {"quick": options.quick, "rounds": options.rounds})
    if options.json is not None:
        options.json.write_text(json.dumps(fields, indent=1) + "\n")
    if options.record:
        record(fields, Path(__file__).parents[1] / "docs")
    return 0


def _parser() -> argparse.ArgumentParser:
    data = os.environ.get("VLM_CACHE_TEST_DATA")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        epilog="example: python -m benchmarks.decode --data /data/videos --json decode.json",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path(data) if data else None,
        help="folder of real videos (default: $VLM_CACHE_TEST_DATA; without either only generated ones are measured)",
    )
    parser.add_argument("--only", metavar="TEXT", help="only real videos with this in their names")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each contestant (default 7)")
    parser.add_argument("--quick", action="store_true", help="tiny generated videos: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--record", action="store_true", help="rewrite the figures in docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
