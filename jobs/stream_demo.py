"""`vlm-cache stream demo`: loads the model and serves the web demo until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from consumers.streaming.demo import DemoRefused, DemoServer, ServerOptions, SessionOptions
from consumers.streaming.qwen_model import load_streaming_model
from jobs.preconditions import check_device
from jobs.printing import printable
from pipeline.errors import BuildRefused

_LOCAL = ("127.0.0.1", "localhost", "::1")


def run(args: argparse.Namespace, *, stopped: threading.Event | None = None) -> int:
    """Serve the demo until `stopped` is set, SIGTERM comes, or the process is interrupted; returns 0.

    Raises:
        BuildRefused: Gradio is not installed, there is no such model or device, or the port is taken.
    """
    check_device(args.device)
    print(f"loading {printable(args.model)}", file=sys.stderr, flush=True)
    server = _server(args)
    try:
        address = server.start()
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if args.host.strip("[]") not in _LOCAL:
            print("no password protects this page: whoever reaches the port can use it", file=sys.stderr, flush=True)
        with _set_by_sigterm(stopped or threading.Event()) as ended:
            ended.wait()
    except DemoRefused as exc:
        raise BuildRefused(str(exc)) from exc
    finally:
        server.stop()
    return 0


@contextmanager
def _set_by_sigterm(event: threading.Event) -> Iterator[threading.Event]:
    """Let SIGTERM, by which systems end what they started, end the demo as Ctrl-C does: with its uploads."""
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _server(args: argparse.Namespace) -> DemoServer:
    where = ServerOptions(args.host, args.port, args.max_sessions, args.max_upload)
    sessions = SessionOptions(
        max_new_tokens=args.max_new_tokens, max_cache_tokens=args.max_cache_tokens, max_pixels=args.max_pixels
    )
    try:
        model, processor = load_streaming_model(args.model, args.device, dtype=args.dtype, attention=args.attention)
        return DemoServer(model, processor, where, sessions, note=_note(args))
    except ModuleNotFoundError as exc:
        if exc.name != "gradio":
            raise
        raise BuildRefused("the package gradio is not installed; pip install 'vlm-cache[stream]'") from exc
    except ValueError as exc:
        raise BuildRefused(str(exc)) from exc


def _note(args: argparse.Namespace) -> str:
    """Return what the page says of its model, as Markdown."""
    if args.model == "small":
        return "The built-in small model has random weights: everything works, and its answers mean nothing."
    return f"Model: `{str(args.model).replace('`', '')}` on {args.device}"
