"""Claims of shards, so that two builds on one store share the work. Correctness never depends on them.

`<store>/.vlm-cache/claims/<shard>` names the build that works on a shard, `<build>.owner` that build's process, and its
modification time is the build's sign of life.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cache_store.clock import file_system_now_s
from cache_store.naming import CLAIMS
from cache_store.processes import Owner, is_alive, this_process

REFRESH_S = 10.0
STALE_AFTER_S = 60.0  # without a sign of life
ASK_AGAIN_S = 1.0  # an owner that was at work is not asked again before that
_OWNER = ".owner"


class Claims:
    """The claims of one build. Where none can be written, every shard is free."""

    def __init__(self, root: Path, *, build: str) -> None:
        self._root, self._folder, self._build = root, root / CLAIMS, build
        self._mine: set[str] = set()
        self._at_work: dict[str, float] = {}  # other builds, and until when that is taken for granted
        self._refreshed = time.monotonic()
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(self._build + _OWNER, json.dumps(asdict(this_process(build))))
            self._sweep()

    def take(self, shard: str) -> bool:
        """Claim a shard; False while another build at work has it. What a dead build had is taken over."""
        try:
            self._write(shard, self._build, publish=os.link)  # which, unlike a rename, fails where there is one
        except FileExistsError:
            if self._is_at_work(self._holder(shard)):
                return False
            with contextlib.suppress(OSError):
                self._write(shard, self._build)
        except OSError:
            return True
        self._mine.add(shard)
        return True

    def release(self, shard: str) -> None:
        """Give a shard back: everything in it is published, or has failed."""
        if shard in self._mine:
            self._mine.discard(shard)
            with contextlib.suppress(OSError):
                os.unlink(self._folder / shard)

    def refresh(self) -> None:
        """Give a sign of life if it is time for one."""
        if time.monotonic() - self._refreshed > REFRESH_S:
            self._refreshed = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._folder / (self._build + _OWNER))

    def close(self) -> None:
        """Give everything back, and remove what dead builds left."""
        for shard in list(self._mine):
            self.release(shard)
        with contextlib.suppress(OSError):
            os.unlink(self._folder / (self._build + _OWNER))
            self._sweep()

    def _write(self, name: str, text: str, *, publish: Callable[[Path, Path], None] = os.replace) -> None:
        temporary = self._folder / f"{name}.{self._build}.new"
        temporary.write_text(text)
        try:
            publish(temporary, self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _holder(self, shard: str) -> str:
        """Return the build that holds a shard; "" if it has just been given back."""
        try:
            return (self._folder / shard).read_text()
        except OSError:
            return ""

    def _is_at_work(self, build: str) -> bool:
        now = time.monotonic()
        if not build or self._at_work.get(build, 0.0) > now:
            return True
        path = self._folder / (build + _OWNER)
        try:
            silent_s = file_system_now_s(self._root) - path.stat().st_mtime
            owner = Owner(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return False  # it ended
        is_at_work = silent_s < STALE_AFTER_S
        if owner.host == this_process(None).host:
            is_at_work = is_at_work and is_alive(owner, silent_s=silent_s)
        if is_at_work:
            self._at_work[build] = now + ASK_AGAIN_S
        return is_at_work

    def _sweep(self) -> None:
        """Remove what builds that ended without a word left behind."""
        for path in self._folder.iterdir():
            build = path.name.removesuffix(_OWNER) if path.name.endswith(_OWNER) else self._holder(path.name)
            if build and build != self._build and not self._is_at_work(build):
                with contextlib.suppress(OSError):
                    path.unlink()
