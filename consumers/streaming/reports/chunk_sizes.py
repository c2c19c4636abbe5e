"""Chunk sizes side by side: what each costs, and what it changes of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from consumers.streaming.chunked import VideoStreamingInference
from consumers.streaming.reports.failures import named
from consumers.streaming.reports.multi_round import CHOICES
from consumers.streaming.reports.report import Bars, Cell, Report, Table
from consumers.streaming.reports.setting import QUESTIONS, Setting
from consumers.streaming.video_sequence import Wrapping

SIZES = (2, 3, 4, 6)
WRAPPINGS: tuple[Wrapping, ...] = ("continuous", "turns")
NEARLY_EQUAL = 0.05  # log-probabilities; what rounding to bfloat16 makes of equal sequences
Row = dict[str, Cell]


def report_chunks(
    setting: Setting,
    *,
    sizes: Sequence[int] = SIZES,
    frames: int = 48,
    question: str = QUESTIONS[0],
    choices: Sequence[str] = CHOICES,
) -> Report:
    """Report on the first `frames` frames of the video (or all, if it has fewer) in chunks of each size, and in one.

    Both wrappings: continuous chunks must give what one chunk gives, but for rounding; turns are another conversation
    for each size. An odd number of frames ends with the last one twice, as in native inference: in all sizes every
    frame is encoded. Sizes that hold all frames are the one chunk. One that runs out of memory or context is named in
    `failures`; the others are still compared, if not with the one chunk.

    Raises:
        ValueError: a size below 1, or no size.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"chunk sizes must be whole numbers from 1 on, got {list(sizes)}")
    taken = setting.video.frames(0, frames)
    all_sizes = [*(size for size in dict.fromkeys(sizes) if size < len(taken)), len(taken)]
    _warm_up(setting)
    rows: list[Row] = []
    failures: list[str] = []
    for wrapping in WRAPPINGS:
        found: list[Row] = []
        for size in all_sizes:
            setting.told(len(rows) + len(found), len(WRAPPINGS) * len(all_sizes), f"{wrapping}, chunks of {size}")
            with named(f"{wrapping}, chunks of {size}", failures):
                found.append(_measured(setting, taken, size, wrapping, question, choices))
        rows += _against_one_chunk(found, len(taken))
    facts = setting.facts() | {"frames": len(taken), "question": question, "choices": " / ".join(choices)}
    return Report(
        "chunks",
        "Chunk sizes side by side",
        facts,
        [
            Table(
                "Chunk sizes", [{k: v for k, v in row.items() if k not in ("answer", "choice")} for row in rows], _NOTE
            ),
            Table("Answers", [{name: row[name] for name in _SAID} for row in rows]),
        ],
        [
            Bars("Frames encoded per second", "frames/s", _by_size(rows, "frames_per_s", len(taken))),
            Bars("Time to the first token", "seconds", _by_size(rows, "ttft_s", len(taken))),
        ],
        warnings=lines_apart(rows, more_than=NEARLY_EQUAL),
        failures=failures,
    )


def lines_apart(rows: Sequence[Mapping[str, Cell]], *, more_than: float) -> list[str]:
    """Return a line for each continuous row of a report whose scores lie further from one chunk's."""
    return [
        f"continuous, chunks of {row['chunk_frames']}: scores differ by {row['score_difference']:.3g} from one chunk"
        for row in rows
        if row["wrapping"] == "continuous" and not float(row["score_difference"] or 0) <= more_than
    ]


_SCORE = "score of "
_SAID = ("wrapping", "chunk_frames", "answer", "choice")
_NOTE = (
    "same answer and score difference: against the wrapping's last row, all frames in one chunk; the difference is the "
    "largest of the choices' log-probabilities; an odd last frame is repeated, and counts once"
)


def _warm_up(setting: Setting) -> None:
    """What a process does only once should not be the first row's."""
    stream = VideoStreamingInference(setting.model, setting.processor, **setting.pixel_bounds)
    stream.append_video_chunk(setting.video.frames(0, 2))
    stream.ask("?", 1)


def _measured(
    setting: Setting,
    frames: list[np.ndarray],
    size: int,
    wrapping: Wrapping,
    question: str,
    choices: Sequence[str],
) -> Row:
    meter = setting.meter
    meter.begin()
    stream = VideoStreamingInference(setting.model, setting.processor, wrapping=wrapping, **setting.pixel_bounds)
    whole = [*frames, *frames[-1:] * (-len(frames) % stream.runner.frames_per_grid)]
    step, seconds = size if size < len(frames) else len(whole), 0.0
    for start in range(0, len(whole), step):
        chunk = whole[start : start + step]
        when = setting.video.timing(start, len(chunk))
        seconds += meter.timed(lambda c=chunk, w=when: stream.append_video_chunk(c, **w))[1]  # type: ignore[misc]
    answer, metrics = stream.ask(question, setting.max_new_tokens)
    choice, scored = stream.ask_choice(question, choices)
    info = stream.get_cache_info()
    return {
        "wrapping": wrapping,
        "chunk_frames": size,
        "chunks": info["chunks_encoded"],
        "encode_s": seconds,
        "frames_per_s": len(frames) / seconds,
        "cache_tokens": info["cache_seq_length"],
        "cache_bytes": info["cache_memory_bytes"],
        "peak_bytes": meter.peak_bytes(),
        "ttft_s": metrics["ttft"],
        "total_s": metrics["total_latency"],
        "answer": answer,
        "choice": choice,
        **{f"{_SCORE}{text}": score for text, score in scored["scores"].items()},
    }


def _against_one_chunk(rows: list[Row], frames: int) -> list[Row]:
    whole = next((row for row in rows if row["chunk_frames"] == frames), None)
    return [
        {name: value for name, value in row.items() if not name.startswith(_SCORE)}
        | {
            "same_answer": None if whole is None else row["answer"] == whole["answer"],
            "score_difference": None if whole is None else _scores_apart(row, whole),
        }
        for row in rows
    ]


def _scores_apart(one: Row, other: Row) -> float:
    return max(_apart(float(one[name] or 0), float(other[name] or 0)) for name in one if name.startswith(_SCORE))


def _apart(one: float, other: float) -> float:
    return 0.0 if one == other else abs(one - other)  # two of minus infinity are equal


def _by_size(rows: list[Row], name: str, frames: int) -> dict[str, float]:
    sizes = [f"{'all ' * (row['chunk_frames'] == frames)}{row['chunk_frames']} frames" for row in rows]
    return {f"{row['wrapping']}, {size}": float(row[name] or 0) for row, size in zip(rows, sizes, strict=True)}
