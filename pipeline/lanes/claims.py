"""Claims of shards, so that two builds on one store share the work. Correctness never depends on them.

The note `<shard>` names the build that works on a shard, `<build>.owner` that build's process; that it is written anew
is the build's sign of life.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict

from cache_store.processes import Owner, is_alive, this_process
from pipeline.lanes.claim_boards import NEW, Board

REFRESH_S = 10.0
STALE_AFTER_S = 60.0  # without a sign of life
ASK_AGAIN_S = 1.0  # an owner that was at work is not asked again before that
_OWNER = ".owner"


class Claims:
    """The claims of one build. Where none can be written, every shard is free."""

    def __init__(self, board: Board, *, build: str) -> None:
        self._board, self._build = board, build
        self._mine: set[str] = set()
        self._at_work: dict[str, float] = {}  # other builds, and until when that is taken for granted
        self._refreshed = time.monotonic()
        self._signs = 0
        with contextlib.suppress(OSError):
            board.write(build + _OWNER, self._sign_of_life())
            self._sweep()

    def take(self, shard: str) -> bool:
        """Claim a shard; False while another build at work has it. What a dead build had is taken over."""
        try:
            self._board.create(shard, self._build)
        except FileExistsError:
            owner = self._board.read(shard)
            # None if it has just been given back: it is asked for again.
            if owner is None or self._is_at_work(owner):
                return False
            with contextlib.suppress(OSError):
                self._board.write(shard, self._build)
        except OSError:
            return True
        self._mine.add(shard)
        return True

    def release(self, shard: str) -> None:
        """Give a shard back: everything in it is published, or has failed."""
        if shard in self._mine:
            self._mine.discard(shard)
            with contextlib.suppress(OSError):
                self._board.remove(shard)

    def refresh(self) -> None:
        """Give a sign of life if it is time for one."""
        if time.monotonic() - self._refreshed > REFRESH_S:
            self._refreshed = time.monotonic()
            self._board.refresh(self._build + _OWNER, self._sign_of_life())

    def close(self) -> None:
        """Give everything back, and remove what dead builds left."""
        self._board.close()
        for shard in list(self._mine):
            self.release(shard)
        with contextlib.suppress(OSError):
            self._board.remove(self._build + _OWNER)
            self._sweep()

    def _sign_of_life(self) -> str:
        """Return who this build is, otherwise each time: where clocks differ, what changes is alive."""
        self._signs += 1
        return json.dumps({"owner": asdict(this_process(self._build)), "sign": self._signs})

    def _is_at_work(self, build: str) -> bool:
        if not build:
            return False  # notes are published whole: a power cut left it empty, and nobody will give it back
        now = time.monotonic()
        if self._at_work.get(build, 0.0) > now:
            return True
        found = self._board.aged(build + _OWNER)
        if found is None:
            return False  # it ended
        text, silent_s = found
        try:
            owner = Owner(**json.loads(text)["owner"])
        except (ValueError, TypeError, KeyError):
            return False  # no build of ours
        is_at_work = silent_s < STALE_AFTER_S
        if owner.host == this_process(None).host:
            is_at_work = is_at_work and is_alive(owner, silent_s=silent_s)
        if is_at_work:
            self._at_work[build] = now + ASK_AGAIN_S
        return is_at_work

    def _sweep(self) -> None:
        """Remove what builds that ended without a word left behind."""
        for name in self._board.names():
            if name.endswith(NEW):
                build: str | None = name.removesuffix(NEW).rpartition(".")[2]
            else:
                build = name.removesuffix(_OWNER) if name.endswith(_OWNER) else self._board.read(name)
            if build is not None and build != self._build and not self._is_at_work(build):
                with contextlib.suppress(OSError):
                    self._board.remove(name)
