"""The demo's server: the page behind an address of this machine, without a call to any other one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from consumers.streaming.demo.refusal import DemoRefused
from consumers.streaming.demo.registry import SessionRegistry
from consumers.streaming.demo.session import DemoSession, SessionOptions
from consumers.streaming.demo.style import CSS, THEME

# Browsers then fetch nothing from elsewhere, whatever Gradio's page asks for. `eval`: Gradio fills templates with it.
CONTENT_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)


@dataclass(frozen=True)
class ServerOptions:
    """Where the demo listens, and for how many."""

    host: str = "127.0.0.1"
    port: int = 7860
    max_sessions: int = 4
    max_upload_bytes: int = 2 << 30


class DemoServer:
    """The demo of one loaded model. `note`, Markdown, is told at the page's top.

    Raises:
        ValueError: the model and the options of a session do not go together.
    """

    def __init__(
        self, model: Any, processor: Any, server: ServerOptions, sessions: SessionOptions, *, note: str = ""
    ) -> None:
        # Before Gradio is imported: it and the hub's client read these then.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from consumers.streaming.demo.page import DemoPage

        # What no tab could have is refused here, and not on a page; nothing lies around yet.
        DemoSession(model, processor, sessions)
        limit = sessions.limit_tokens(model)
        self._options = server
        self.sessions = SessionRegistry(
            lambda: DemoSession(model, processor, sessions), max_sessions=server.max_sessions
        )
        # Uploads of all tabs; Gradio looks for the name whenever a file comes.
        self._folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="vlm-cache-demo-")
        self._page = DemoPage(self.sessions, note=note, limit_tokens=limit, fps=sessions.fps)

    def start(self) -> str:
        """Listen, and return the page's address; requests are answered on threads of their own.

        Raises:
            DemoRefused: nothing can listen at that host and port.
        """
        import gradio as gr
        from starlette.middleware import Middleware

        # A tab uses several threads at once: for its looks at the stream, its webcam and its answer.
        threads = max(40, 6 * self._options.max_sessions)
        # Gradio makes the page's address of it, where IPv6 stands in brackets.
        host = self._options.host if ":" not in self._options.host else f"[{self._options.host.strip('[]')}]"
        self._page.blocks.queue(default_concurrency_limit=None, api_open=False)
        try:
            _, address, _ = self._page.blocks.launch(
                server_name=host,
                server_port=self._options.port,
                max_file_size=self._options.max_upload_bytes,
                max_threads=threads,
                app_kwargs={"middleware": [Middleware(_WithPolicy)], "docs_url": None, "redoc_url": None},
                theme=gr.themes.Default(
                    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ).set(**THEME),
                css=CSS,
                share=False,
                ssr_mode=False,
                quiet=True,
                footer_links=[],
                run_history=False,
                prevent_thread_lock=True,
            )
        except (OSError, OverflowError) as exc:
            # Gradio's own words name options that only Gradio has.
            raise DemoRefused(
                f"nothing can listen at {host}:{self._options.port}; is the port taken, or the address another "
                "machine's?"
            ) from exc
        return str(address)

    def stop(self) -> None:
        """End all sessions, stop listening, and delete what was uploaded."""
        self.sessions.close_all()
        self._page.blocks.close(verbose=False)
        shutil.rmtree(self._folder, ignore_errors=True)


_Scope = dict[str, Any]
_Send = Callable[[dict[str, Any]], Awaitable[None]]


class _WithPolicy:
    """Adds `CONTENT_POLICY` to every answer; the application's interface is ASGI's."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: Callable[..., Any], send: _Send) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_POLICY.encode())
                message = message | {"headers": [*message["headers"], policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)
