"""The Slurm scripts as docs/clusters.md starts them: real Ray clusters and builds, on a Slurm of two small scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cache_store import FeatureStore
from jobs.__main__ import main
from tests.documents import REPOSITORY, blocks, commands, our_arguments
from tests.media import write_video

PAGE = REPOSITORY / "docs" / "clusters.md"
VIDEOS = 3
TIMEOUT_S = 200

# Starts each task of the job as a batch script is started: a copy, in the folder of the submission, with Slurm's
# variables. Every node has two CPUs and one GPU that Ray only counts.
SBATCH = r"""
import os, re, subprocess, sys
place = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
text = open(sys.argv[place]).read()
asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", text, re.MULTILINE))
asked.update(word[2:].split("=") for word in sys.argv[1:place])
first, last = asked.get("array", "0-0").split("-")
for task in range(int(first), int(last) + 1):
    spooled = os.path.join(os.environ["SPOOL"], f"task-{task}")
    open(spooled, "w").write(text)
    job = {"SLURM_JOB_ID": str(os.getpid() + task), "SLURM_JOB_NUM_NODES": asked["nodes"], "SLURMD_NODENAME": "first",
           "SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_NODE": "1024", "SLURM_GPUS_ON_NODE": "1",
           "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    run = 'bash "$0" "$@" & echo $! > "$0.pid"; wait $!; echo $? > "$0.status"'
    subprocess.Popen(["bash", "-c", run, spooled, *sys.argv[place + 1:]], env=os.environ | job,
                     stdout=open(spooled + ".log", "w"), stderr=subprocess.STDOUT)
"""
# A worker's node is this machine once more.
SRUN = r"""
import os, sys
place = sys.argv.index("ray")
asked = {word.partition("=")[0]: word.partition("=")[2] for word in sys.argv[1:place]}
assert (asked["--nodes"], asked["--ntasks"], asked["--exclude"]) == ("1", "1", os.environ["SLURMD_NODENAME"]), asked
assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64, "an open door"
os.execvp("ray", sys.argv[place:])
"""


class Slurm:
    """A job that was submitted: its tasks' logs and outcomes, and the processes that it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # short, because Ray's sockets lie in it
        self.checkout = folder / "checkout"  # where the job is submitted, and array jobs leave their reports
        self.checkout.mkdir()
        for name in ("cache_store", "examples", "jobs", "pipeline"):
            (self.checkout / name).symlink_to(REPOSITORY / name)
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
            (programs / name).write_text(f"#!{sys.executable}\n{text}")
            (programs / name).chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        path = f"{programs}:{Path(sys.executable).parent}:{clean['PATH']}"
        self._environment = clean | {"PATH": path, "SPOOL": str(folder), "TMPDIR": str(folder)}

    def submit(self, command: str) -> None:
        subprocess.run(command, shell=True, check=True, cwd=self.checkout, env=self._environment)

    def log(self, task: int) -> str:
        return (self.folder / f"task-{task}.log").read_text()

    def wait_for(self, text: str, *, task: int) -> None:
        self._poll(lambda: re.search(text, self.log(task)), f"{text!r} never came", task)

    def status(self, task: int) -> int:
        """Wait for a task's end; returns the exit status of its script."""
        file = self.folder / f"task-{task}.status"
        self._poll(lambda: file.exists() and file.read_text(), "it did not end", task)
        return int(file.read_text())

    def _poll(self, done, problem: str, task: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline, f"{problem}:\n{self.log(task)}"
            time.sleep(0.1)

    def warn(self, task: int) -> None:
        """Send SIGTERM to the batch script alone, as `--signal=B:TERM` does."""
        os.kill(int((self.folder / f"task-{task}.pid").read_text()), signal.SIGTERM)

    def processes(self) -> list[int]:
        """Return the processes that the job started and that still run, however often they forked."""
        mark, found = f"SPOOL={self.folder}\0".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue  # ended meanwhile, or another user's
        return found

    def is_gone(self) -> bool:
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()


@pytest.fixture
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    job = Slurm(folder)
    yield job
    for pid in job.processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.fixture
def page_command(tmp_path):
    """Gives the page's command for a script, with the page's folders moved to the test's own."""
    for number in range(VIDEOS):
        write_video(tmp_path / "data" / "videos" / f"clip_{number}.mp4", seed=number)

    def find(word: str) -> str:
        (command,) = [found for block in blocks(PAGE, "sh") for found in commands(block) if word in found]
        return re.sub(r" /(data|cache)/", rf" {tmp_path}/\1/", command)

    return find


@pytest.mark.slow
def test_one_build_over_two_nodes(slurm, page_command, tmp_path, capsys):
    slurm.submit(page_command("slurm-build.sbatch") + " --decoders-per-lane 1")
    assert slurm.status(0) == 0, slurm.log(0)
    assert slurm.is_gone(), "something of Ray was left on the nodes"
    assert "2 of 2 nodes joined" in slurm.log(0)
    report = json.loads((tmp_path / "cache" / "runs" / "videos" / "report.json").read_text())
    assert (report["done"], report["failed"]) == (VIDEOS, [])
    # Each node has one GPU, so that two encoders are on two nodes.
    outputs = [path.read_text() for path in slurm.folder.glob("ray/session_2*/logs/worker-*.out")]
    assert sum(":actor_name:EncoderProcess" in output for output in outputs) == 2
    for word in ("vlm-cache stats", "vlm-cache verify"):
        assert main(our_arguments(page_command(word))) == 0, capsys.readouterr().out


def test_an_array_of_builds_over_one_store_of_which_one_is_preempted(slurm, page_command, tmp_path):
    slurm.submit(page_command("slurm-array.sbatch") + " --decoders-per-lane 1")
    slurm.wait_for(rf"/{VIDEOS} built", task=0)
    slurm.warn(0)
    assert (slurm.status(0), slurm.status(1)) == (1, 0), slurm.log(0) + slurm.log(1)
    assert slurm.is_gone(), "something of Ray was left on the node"
    print(slurm.log(0)[-6000:])
    runs = slurm.checkout / "vlm-cache-runs" / "7"
    stopped, whole = (json.loads((runs / task / "report.json").read_text()) for task in ("0", "1"))
    assert stopped["stopped"] == "stopped by SIGTERM"
    assert (whole["failed"], whole["not_started"]) == ([], 0)
    with FeatureStore(tmp_path / "cache" / "videos") as store:
        assert (store.stats().entries, store.verify().problems) == (VIDEOS, [])
