"""`vlm-cache stream demo` serves the page until it is stopped, and refuses what it cannot serve."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.arguments import make_parser


@pytest.fixture
def port() -> int:
    pytest.importorskip("gradio", reason="gradio is not installed (extra [stream])")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_page_is_served_until_it_is_stopped_and_leaves_no_files(port, capsys):
    from jobs.stream_demo import run

    class Stop(threading.Event):
        """Looks at the page when the demo begins to wait, and ends the wait."""

        def wait(self, timeout=None) -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                self.page, self.headers = answer.read().decode(), answer.headers
            self.folder = Path(os.environ["GRADIO_TEMP_DIR"])
            self.had_folder = self.folder.is_dir()
            return True

    stop = Stop()
    assert run(make_parser().parse_args(["stream", "demo", "--port", str(port)]), stopped=stop) == 0
    assert "random weights" in stop.page
    assert "default-src 'self'" in stop.headers["content-security-policy"]
    assert stop.had_folder
    assert not stop.folder.exists()
    assert capsys.readouterr().out.startswith(f"http://127.0.0.1:{port}/")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/")


def test_sigterm_ends_the_demo_with_its_uploads(port, monkeypatch):
    from jobs import stream_demo

    class Terminated(threading.Event):
        """Sends the signal when the demo begins to wait."""

        def wait(self, timeout=None) -> bool:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().wait(30)

    folders = []
    start = stream_demo.DemoServer.start
    monkeypatch.setattr(
        stream_demo.DemoServer, "start", lambda self: (folders.append(os.environ["GRADIO_TEMP_DIR"]), start(self))[1]
    )
    before = signal.getsignal(signal.SIGTERM)
    assert stream_demo.run(make_parser().parse_args(["stream", "demo", "--port", str(port)]), stopped=Terminated()) == 0
    assert not Path(folders[0]).exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_of_this_machine_is_served_without_a_warning(port, capsys, host):
    from jobs.stream_demo import run

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    stopped = threading.Event()
    stopped.set()
    arguments = ["stream", "demo", "--host", host, "--port", str(port)]
    assert run(make_parser().parse_args(arguments), stopped=stopped) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"http://[::1]:{port}/")
    assert "no password" not in told.err


def test_a_taken_port_is_refused(port, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert main(["stream", "demo", "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert f"nothing can listen at 127.0.0.1:{port}; is the port taken" in told
    assert "GRADIO" not in told


def test_what_cannot_be_served_is_refused_before_anything_listens(port, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert main(["stream", "demo", "--model", str(tmp_path)]) == 2
    assert main(["stream", "demo", "--max-new-tokens", "9000"]) == 2
    assert "leave nothing" in capsys.readouterr().err
    assert main(["stream", "demo", "--max-pixels", "1"]) == 2
    assert "max_pixels 1 cannot" in capsys.readouterr().err
    assert not list((tmp_path / "temporary").iterdir())
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "consumers.streaming.demo.page", raising=False)
    assert main(["stream", "demo"]) == 2
    assert "pip install 'vlm-cache[stream]'" in capsys.readouterr().err
