"""Stands between a client and an S3 server, and fails as services and lines do, as often as it is told, counting it."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyProxy:
    """`fail(fault, times, method)` spoils the next so many requests of a method; `counts` says what happened.

    Faults: "503", "silence", "refused", an answer that is "cut" in its body, a "lost answer".
    """

    def __init__(self, behind: str) -> None:
        self.behind = urlsplit(behind).netloc
        self.counts: Counter[str] = Counter()
        self._plan: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def fail(self, fault: str, times: int, method: str) -> None:
        self._plan += [(fault, method)] * times

    def recover(self) -> None:
        self._plan.clear()

    def fault_for(self, method: str) -> str | None:
        with self._lock:
            found = next((one for one in self._plan if one[1] == method), None)
            if found is not None:
                self._plan.remove(found)
            self.counts[method if found is None else found[0]] += 1
            return found[0] if found else None


@contextlib.contextmanager
def faulty_proxy(behind: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(behind)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        proxy.server.shutdown()
        proxy.server.server_close()


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault_for(self.command)
            if fault == "503":
                return self.send(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
            if fault == "refused":
                return self.hang_up()
            if fault == "silence":
                proxy.released.wait(20)
                return self.hang_up()
            status, headers, content = self.forwarded(body)
            if fault == "lost answer":
                return self.hang_up()
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), len(content))
            if fault == "cut":
                self.send(status, headers, content[: len(content) // 2], length)
                return self.hang_up()
            return self.send(status, headers, content, length)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(proxy.behind)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        def send(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def hang_up(self) -> None:
            self.close_connection = True

    return Handler
