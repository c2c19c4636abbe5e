"""The page: what a person sees and presses, and what each press does to the tab's session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from consumers.streaming.demo import view
from consumers.streaming.demo.records import Exchange, Status
from consumers.streaming.demo.refusal import DemoRefused
from consumers.streaming.demo.registry import SessionRegistry
from consumers.streaming.demo.session import CHUNK_SIZES, DemoSession

TITLE = "vlm-cache: streaming Qwen2.5-VL"
_TICK_S = 0.5  # between two looks at the stream
_REAL_TIME, _FAST = "The video's own", "As fast as the model takes it"


class DemoPage:
    """The page as `blocks`, not yet served. A tab's session is found by the name that Gradio gives the tab."""

    def __init__(self, sessions: SessionRegistry, *, note: str, limit_tokens: int, fps: float) -> None:
        self._sessions, self._limit_tokens, self._fps = sessions, limit_tokens, fps
        # Files that tabs sent are looked through every hour, and go when they are a day old.
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            gr.Markdown(f"# Streaming Qwen2.5-VL\n{note}")
            with gr.Row():
                with gr.Column(min_width=320):
                    self._build_controls()
                with gr.Column(min_width=320):
                    self._status = gr.HTML(self._status_html(Status()), container=True, padding=True)
            with gr.Row():
                with gr.Column(min_width=320):
                    self._build_questions()
                with gr.Column(min_width=320):
                    self._answers = gr.HTML(view.answers_html(()), container=True, padding=True)
            self._stars = gr.HTML(view.stars_html(()), container=True, padding=True)
            self._shown = gr.State({})  # what the tab shows already, so that only changes are sent
            self._connect()

    def _build_controls(self) -> None:
        with gr.Tabs():
            with gr.Tab("Video"):
                self._video = gr.Video(
                    sources=["upload"], include_audio=True, height=240, label="Video file", elem_id="video"
                )
                self._start_video = gr.Button("Start video", variant="primary", elem_id="start-video")
            with gr.Tab("Webcam"):
                gr.Markdown("Allow the camera, press Record, then Start webcam.")
                self._webcam = gr.Image(
                    sources=["webcam"], streaming=True, type="numpy", height=240, label="Webcam", elem_id="webcam"
                )
                self._start_webcam = gr.Button("Start webcam", variant="primary", elem_id="start-webcam")
        self._notice = gr.HTML("", elem_classes="vlm-notice")
        with gr.Row():
            self._pause = gr.Button("Pause", interactive=False, min_width=96, elem_id="pause")
            self._resume = gr.Button("Resume", interactive=False, min_width=96, elem_id="resume")
            self._reset = gr.Button("Reset", min_width=96, elem_id="reset")
        self._chunk_size = gr.Radio(
            list(CHUNK_SIZES),
            value=4,
            label="Frames in a chunk",
            info="1: each frame is a still image",
            elem_id="chunk",
        )
        self._pace = gr.Radio([_REAL_TIME, _FAST], value=_REAL_TIME, label="Pace of a video", elem_id="pace")

    def _build_questions(self) -> None:
        self._question = gr.Textbox(
            label="Question", info="The stream pauses for it and goes on by itself", lines=2, elem_id="question"
        )
        with gr.Row():
            self._ask = gr.Button("Ask", variant="primary", min_width=96, elem_id="ask")
            self._stop = gr.Button("Stop", interactive=False, min_width=96, elem_id="stop")
        self._choices = gr.Textbox(
            label="Choices", info="One on each line", placeholder="Yes\nNo", lines=3, elem_id="choices"
        )
        self._choose = gr.Button("Choose the likeliest", elem_id="choose")
        self._ask_notice = gr.HTML("", elem_classes="vlm-notice")

    def _connect(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        for button, does, inputs in (
            (self._start_video, self._video_started, [self._video, self._chunk_size, self._pace]),
            (self._start_webcam, self._webcam_started, [self._chunk_size]),
            (self._pause, self._pressed(DemoSession.pause), []),
            (self._resume, self._pressed(DemoSession.resume), []),
            (self._reset, self._pressed(DemoSession.reset), []),
        ):
            button.click(does, inputs, [self._notice], **quiet)
        answer = {"outputs": [self._answers, self._ask_notice], **quiet}
        gr.on([self._ask.click, self._question.submit], self._asked, [self._question], **answer)
        self._choose.click(self._chosen, [self._question, self._choices], **answer)
        self._stop.click(self._pressed(DemoSession.stop_answer), [], [self._ask_notice], **quiet)
        self._webcam.stream(
            self._webcam_frame, [self._webcam], [], stream_every=1 / self._fps, time_limit=None, **quiet
        )
        # Nothing else looks: of two looks at once the earlier one could be drawn last, and `_shown` name the later one.
        gr.Timer(_TICK_S).tick(self._looked, [self._shown], [*self._views(), self._shown], trigger_mode="once", **quiet)
        self.blocks.unload(self._closed)

    def _views(self) -> list[Any]:
        return [self._status, self._stars, self._answers, self._pause, self._resume, self._stop]

    def _looked(self, shown: dict[str, Any], request: gr.Request) -> list[Any]:
        """Return the views, where they are not what the tab shows already."""
        session = self._sessions.find(request.session_hash)
        status = session.status() if session else Status()
        exchanges = session.exchanges() if session else ()
        views = {
            "status": self._status_html(status),
            "stars": view.stars_html(status.stars),
            # While an answer grows, its own event sends it.
            "answers": shown.get("answers") if status.is_asking else view.answers_html(exchanges),
            "pause": status.state == "streaming",
            "resume": status.state == "paused",
            "stop": status.is_asking,
        }
        updates = [
            gr.skip() if shown.get(name) == now else gr.update(interactive=now) if isinstance(now, bool) else now
            for name, now in views.items()
        ]
        return [*updates, views if views != shown else gr.skip()]

    def _status_html(self, status: Status) -> str:
        return view.status_html(status, limit_tokens=self._limit_tokens)

    def _video_started(self, path: str | None, chunk_size: int, pace: str, request: gr.Request) -> str:
        def start(session: DemoSession) -> None:
            video = None if path is None else Path(path)
            session.start_video(video, chunk_size=chunk_size, is_paced=pace == _REAL_TIME)

        return self._told(start, request)

    def _webcam_started(self, chunk_size: int, request: gr.Request) -> str:
        return self._told(lambda session: session.start_webcam(chunk_size=chunk_size), request)

    def _webcam_frame(self, frame: Any, request: gr.Request) -> None:
        session = self._sessions.find(request.session_hash)
        if session and frame is not None:
            session.add_webcam_frame(frame)

    def _pressed(self, does: Callable[[DemoSession], None]) -> Callable[[gr.Request], str]:
        def pressed(request: gr.Request) -> str:
            return self._told(does, request)

        return pressed

    def _told(self, does: Callable[[DemoSession], None], request: gr.Request) -> str:
        """Do something with the tab's session; returns what the person is to be told, mostly nothing."""
        try:
            does(self._sessions.get(request.session_hash))
        except DemoRefused as exc:
            return view.notice_html(str(exc))
        return ""

    def _asked(self, question: str, request: gr.Request) -> Iterator[tuple[Any, str]]:
        yield from self._answering(lambda session: session.ask(question), request)

    def _chosen(self, question: str, choices: str, request: gr.Request) -> Iterator[tuple[Any, str]]:
        yield from self._answering(lambda session: session.choose(question, choices.splitlines()), request)

    def _answering(
        self, ask: Callable[[DemoSession], Iterator[tuple[Exchange, ...]]], request: gr.Request
    ) -> Iterator[tuple[Any, str]]:
        try:
            for exchanges in ask(self._sessions.get(request.session_hash)):
                yield view.answers_html(exchanges), ""
        except DemoRefused as exc:
            yield gr.skip(), view.notice_html(str(exc))

    def _closed(self, request: gr.Request) -> None:
        self._sessions.close(request.session_hash)
