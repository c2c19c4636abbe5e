"""A real cluster and a real `ray job submit`, as docs/clusters.md has it, with Ray's token authentication on."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.documents import REPOSITORY, blocks, commands
from tests.media import write_video

BIN = Path(sys.executable).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(tmp_path_factory):
    """A head started as an operator would start it; yields (environment, dashboard address)."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": f"{BIN}:{environment['PATH']}"}
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    head = subprocess.Popen(
        [
            *[str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"],
            # With its usual port the agent that takes jobs could not start beside another cluster of this machine.
            *["--num-cpus=2", "--disable-usage-stats", f"--dashboard-agent-listen-port={agent}"],
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("the head did not start")
        yield environment, f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    finally:
        # `ray start --block` ends every process of the node when it is told to end.
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=30)


def test_a_build_submitted_as_a_ray_job(cluster, tmp_path):
    environment, dashboard, _ = cluster
    for number in range(3):
        write_video(tmp_path / "data" / "videos" / f"clip_{number}.mp4", seed=number)
    # The repository itself is the working directory: Ray leaves out what .gitignore names, such as .venv.
    page = REPOSITORY / "docs" / "clusters.md"
    (submit,) = [command for block in blocks(page, "sh") for command in commands(block) if "ray job submit" in command]
    submit = re.sub(r" /(cache|data)/", rf" {tmp_path}/\1/", submit).replace("http://HEAD:8265", dashboard)

    for change, answer in (
        ({"RAY_AUTH_TOKEN_PATH": _other_token(tmp_path)}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ):
        refused = _run(submit, environment | change)
        assert refused.returncode != 0, "somebody without the token was let in"
        assert answer in refused.stdout + refused.stderr
        assert answer in page.read_text()
    assert not (tmp_path / "cache").exists()

    done = _submit(submit, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "cache" / "runs" / "videos" / "report.json").read_text())
    assert (report["done"], report["failed"]) == (3, [])
    assert len(list((tmp_path / "cache" / "videos" / "videos").glob("*.pt"))) == 3


def test_a_build_that_joins_the_cluster_by_address(cluster, tmp_path):
    environment, _, address = cluster
    write_video(tmp_path / "videos" / "clip.mp4")
    done = subprocess.run(
        [
            *[sys.executable, "-m", "jobs", "build", "--source", "folder", "--data", str(tmp_path / "videos")],
            *["--encoder", "longva", "--model", "small", "--nframe", "4", "--store", str(tmp_path / "store")],
            *["--address", address, "--json"],
        ],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 1


def _run(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, env=environment, cwd=REPOSITORY, capture_output=True, text=True)


def _submit(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submit as soon as the head takes jobs: its agent comes up some seconds after the head says that it started."""
    for _ in range(60):
        done = _run(command, environment)
        if "No available agent to submit job" not in done.stdout + done.stderr:
            break
        time.sleep(1)
    return done


def _other_token(tmp_path: Path) -> str:
    path = tmp_path / "other_token"
    path.write_text(secrets.token_hex(32))
    return str(path)
