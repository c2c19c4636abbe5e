"""How busy a GPU is, by its driver's own figure: the share of time in which any kernel ran."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE_S = 0.2


@contextmanager
def utilisation(device: str) -> Iterator[list[float]]:
    """Fill the list with percentages of GPU 0 while the block runs; it stays empty where nobody tells any."""
    found: list[float] = []
    read = _reader() if device.startswith("cuda") else None
    if read is None:
        yield found
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(PAUSE_S):
            found.append(read())

    thread = threading.Thread(target=look, name="utilisation", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _reader() -> Callable[[], float] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except Exception:  # noqa: BLE001 - not installed, or no driver that answers: ask the command
        command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return lambda: float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
