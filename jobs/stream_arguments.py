"""The arguments of `stream` and of what follows it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jobs.parsers import Arguments, Commands, add_command, add_json
from jobs.sizes import parse_size, positive_int


def add_stream(commands: Commands) -> None:
    """Add the parser of `stream`; what follows it is in `stream_command`."""
    parser = add_command(
        commands,
        "stream",
        "Streaming inference on Qwen2.5-VL: reports on a model and a video of yours, and a demo in the browser.",
        "vlm-cache stream compare --model Qwen/Qwen2.5-VL-3B-Instruct --video talk.mp4 --report reports/compare",
        "vlm-cache stream capacity --model small --video talk.mp4 --json",
        "vlm-cache stream demo --model small",
    )
    kinds = parser.add_subparsers(dest="stream_command", metavar="WHAT", required=True)
    for add in (_add_compare, _add_chunks, _add_delayed, _add_multi_round, _add_capacity, _add_check, _add_demo):
        add(kinds)


def _add_compare(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "compare",
        "Stream, delayed, last-N-frames and native inference side by side: time to the first token, seconds, memory, "
        "and how far answers agree with native's. Answers less than half or more than twice as long as native's are "
        "flagged. Exit status 1 if a way gave no answer.",
        "vlm-cache stream compare --model Qwen/Qwen2.5-VL-3B-Instruct --device cuda --video talk.mp4 \\\n"
        "      --question 'Who is speaking?' --question 'What is on the slide?' --report reports/compare",
    )
    _add_report_options(parser)
    _add_frames(parser)
    _add_chunk_frames(parser)
    parser.add_argument("--last", type=positive_int, default=4, metavar="N", help="frames of the last-N baseline")
    _add_questions(parser)


def _add_chunks(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "chunks",
        "Chunk sizes side by side, with all frames in one chunk for comparison: pace, memory, time to the first token, "
        "and what the size changes of the answers; with each chunk as a turn and with all chunks as one video.",
        "vlm-cache stream chunks --model Qwen/Qwen2.5-VL-3B-Instruct --video talk.mp4 --size 2 --size 8",
    )
    _add_report_options(parser)
    _add_frames(parser)
    parser.add_argument(
        "--size", type=positive_int, action="append", metavar="N", help="frames of a chunk, repeatable; else 2, 3, 4, 6"
    )
    parser.add_argument("--question", default=_QUESTION, metavar="TEXT", help="what is asked")
    _add_choices(parser)


def _add_delayed(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "delayed",
        "Delayed inference step by step: frames are added, a question encodes them, a second one need not, more frames "
        "come, and the next question pays for what is new. Exit status 1 if one of that is not so.",
        "vlm-cache stream delayed --model small --video talk.mp4 --frames 20 --more 5",
    )
    _add_report_options(parser)
    parser.add_argument("--frames", type=positive_int, default=50, metavar="N", help="frames before the first question")
    parser.add_argument("--more", type=positive_int, default=10, metavar="N", help="frames that come after it")
    parser.add_argument("--question", default=_QUESTION, metavar="TEXT", help="what is asked")


def _add_multi_round(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "multi-round",
        "Many questions in one stream: rounds of frames, a question and a choice, which must leave every key and value "
        "bitwise as it was; then rounds whose answers are kept. Exit status 1 if a question left a trace.",
        "vlm-cache stream multi-round --model small --video talk.mp4 --rounds 3",
    )
    _add_report_options(parser)
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="of each kind")
    parser.add_argument("--chunks-per-round", type=positive_int, default=2, metavar="N", help="before each question")
    _add_chunk_frames(parser)
    _add_wrapping(parser)
    _add_questions(parser)
    _add_choices(parser)


def _add_capacity(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "capacity",
        "How much video fits into memory: chunks of 4 frames, measured after every 10, until the file ends, or memory "
        "or the model's context does; at the video's own size, 224x224, 480 and 720 rows. Every frame of the file is "
        "taken.",
        "vlm-cache stream capacity --model Qwen/Qwen2.5-VL-3B-Instruct --device cuda --video film.mp4",
        "vlm-cache stream capacity --model small --video film.mp4 --size 224 --memory-limit 4GiB --max-chunks 200",
    )
    _add_report_options(parser, is_bounded=False)
    parser.add_argument(
        "--size",
        action="append",
        choices=("native", "224", "480p", "720p"),
        help="of the frames, repeatable; else all of them",
    )
    parser.add_argument(
        "--memory-limit",
        type=parse_size,
        metavar="SIZE",
        help="beside the model, counts as all there is; else all of a GPU's, or four fifths of what is free on the CPU",
    )
    parser.add_argument("--max-chunks", type=positive_int, metavar="N", help="stop there at the latest")
    _add_wrapping(parser)


def _add_check(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "check",
        "Whether streaming works with a checkpoint: questions about a made clip of a red square and a green triangle, "
        "asked in every way; and on the video, that questions leave no trace and that chunk sizes do not matter. Exit "
        "status 1 if an answer is wrong (small's are not judged) or a promise is broken.",
        "vlm-cache stream check --model Qwen/Qwen2.5-VL-3B-Instruct --device cuda --video talk.mp4",
    )
    _add_report_options(parser)


def _add_demo(kinds: Commands) -> None:
    parser = add_command(
        kinds,
        "demo",
        "Stream a video or a webcam in the browser, watch the KV cache, and ask: a web page for several people at "
        "once, which fetches nothing from elsewhere. It has no password: whoever reaches the port can use it.",
        "vlm-cache stream demo",
        "vlm-cache stream demo --model Qwen/Qwen2.5-VL-3B-Instruct --device cuda --host 0.0.0.0 --max-sessions 8",
    )
    what = parser.add_argument_group("the model")
    what.add_argument(
        "--model",
        default=os.environ.get("QWEN_MODEL_PATH") or "small",
        metavar="PATH_OR_ID|small",
        help="checkpoint folder, hub id, or the built-in random model, whose answers mean nothing",
    )
    _add_model_options(what)
    _add_bounds(what, max_new_tokens=128)
    what.add_argument(
        "--max-cache-tokens",
        type=positive_int,
        default=16384,
        metavar="N",
        help="of one stream; beyond, its oldest chunks go. Never more than the model's context",
    )
    where = parser.add_argument_group("the page")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0: for other machines too")
    where.add_argument("--port", type=positive_int, default=7860, metavar="N", help="where it listens")
    where.add_argument("--max-sessions", type=positive_int, default=4, metavar="N", help="tabs with a stream at once")
    where.add_argument("--max-upload", type=parse_size, default="2GiB", metavar="SIZE", help="largest video file")


_QUESTION = "What happens in this video?"


def _add_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=positive_int, default=48, metavar="N", help="of the video, at most")


def _add_chunk_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunk-frames", type=positive_int, default=4, metavar="N", help="frames of a chunk")


def _add_wrapping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wrapping", choices=("turns", "continuous"), default="turns", help="each chunk a turn, or all one video"
    )


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", action="append", metavar="TEXT", help="what is asked, repeatable; else three")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--choice", action="append", metavar="TEXT", help="an answer to choose from, repeatable; else Yes and No"
    )


def _add_report_options(parser: argparse.ArgumentParser, *, is_bounded: bool = True) -> None:
    what = parser.add_argument_group("what to report on")
    what.add_argument(
        "--model",
        default=os.environ.get("QWEN_MODEL_PATH") or None,
        metavar="PATH_OR_ID|small",
        help="checkpoint folder, hub id, or the built-in random model; without it $QWEN_MODEL_PATH",
    )
    what.add_argument(
        "--video",
        type=Path,
        default=os.environ.get("VIDEO_PATH") or None,
        metavar="FILE",
        help="a video, or a folder of numbered images; without it $VIDEO_PATH",
    )
    what.add_argument(
        "--frame-stride",
        type=positive_int,
        default=os.environ.get("FRAME_STRIDE") or None,
        metavar="N",
        help="take every N-th frame of the file; without it $FRAME_STRIDE, else "
        + ("as near to 2 frames per second as can be" if is_bounded else "1"),
    )
    how = parser.add_argument_group("how")
    _add_model_options(how)
    if is_bounded:
        _add_bounds(how, max_new_tokens=64)
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.html, report.md with its plots, and report.json there"
    )
    add_json(parser)


def _add_model_options(how: Arguments) -> None:
    how.add_argument("--device", default="cpu", metavar="cpu|cuda|cuda:N", help="where the model runs")
    how.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="of the model, instead of the checkpoint's own"
    )
    how.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="kernels")


def _add_bounds(how: Arguments, *, max_new_tokens: int) -> None:
    how.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="of a frame as the model sees it; larger ones are scaled down",
        default=4 * 224 * 224,
    )
    how.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=max_new_tokens,
        metavar="N",
        help="longest answer; answers are greedy",
    )
