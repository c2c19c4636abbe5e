"""Where builds write down which shard is whose: small texts by name, in the store's folder or beside its objects."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cache_store.atomic import give_free_name
from cache_store.clock import file_system_now_s
from cache_store.errors import CacheStoreError
from cache_store.naming import CLAIMS
from cache_store.remote.objects import Objects

NEW = ".new"  # ends the name of what a build is writing; before it stands the build's own


class Board(Protocol):
    """Notes by name. `create`, `write` and `remove` raise OSError where the place cannot be written."""

    def create(self, name: str, text: str) -> None:
        """Write a note. Raises FileExistsError where there is one."""

    def write(self, name: str, text: str) -> None:
        """Write a note over whatever is there."""

    def remove(self, name: str) -> None:
        """Take a note away."""

    def read(self, name: str) -> str | None:
        """Return what a note says; None where there is none, "" where it cannot be read."""

    def names(self) -> list[str]:
        """Return the names of all notes."""

    def aged(self, name: str) -> tuple[str, float] | None:
        """Return what a note says, and for how many seconds it has, as far as this process can know."""

    def refresh(self, name: str, text: str) -> None:
        """Write a note soon, without making the caller wait for a service, and without an error."""

    def close(self) -> None:
        """End what is still being written."""


class FileBoard:
    """Notes in `<root>/.vlm-cache/claims/`, whose ages the file system's own clock tells."""

    def __init__(self, root: Path, *, writer: str) -> None:
        self._root, self._folder, self._writer = root, root / CLAIMS, writer
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)

    def create(self, name: str, text: str) -> None:
        self._publish(name, text, give_free_name)

    def write(self, name: str, text: str) -> None:
        self._publish(name, text, os.replace)

    def remove(self, name: str) -> None:
        os.unlink(self._folder / name)

    def read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return ""

    def names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except OSError:
            return []

    def aged(self, name: str) -> tuple[str, float] | None:
        try:
            written_s = (self._folder / name).stat().st_mtime
            return (self._folder / name).read_text(), file_system_now_s(self._root) - written_s
        except (OSError, ValueError):
            return None

    def refresh(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):
            self.write(name, text)

    def close(self) -> None:
        return

    def _publish(self, name: str, text: str, publish: Callable[[Path, Path], None]) -> None:
        temporary = self._folder / f"{name}.{self._writer}{NEW}"
        temporary.write_text(text)
        try:
            publish(temporary, self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)


class ObjectBoard:
    """Notes as objects below a URL. No clock is common to all machines: a note is as old as it was seen unchanged."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._seen: dict[str, tuple[str, float]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vlm-cache-claims")
        self._refreshing: Future[None] | None = None

    def create(self, name: str, text: str) -> None:
        # Most are refused while another build is at work, and a look costs less than a refusal.
        if self.read(name) is not None:
            raise FileExistsError(name)
        self._put(name, text, create_only=True)

    def write(self, name: str, text: str) -> None:
        self._put(name, text, create_only=False)

    def remove(self, name: str) -> None:
        with _as_os_errors():
            self._objects.delete(f"{CLAIMS}/{name}")

    def read(self, name: str) -> str | None:
        try:
            content = self._objects.get(f"{CLAIMS}/{name}", lambda content, _: content)
        except CacheStoreError:
            return ""
        return None if content is None else content.decode(errors="replace")

    def names(self) -> list[str]:
        try:
            return [name.rpartition("/")[2] for name in self._objects.names_in(CLAIMS)]
        except CacheStoreError:
            return []

    def aged(self, name: str) -> tuple[str, float] | None:
        text, now_s = self.read(name), time.monotonic()
        if text is None:
            return None
        if self._seen.get(name, ("", 0.0))[0] != text:
            self._seen[name] = text, now_s
        return text, now_s - self._seen[name][1]

    def refresh(self, name: str, text: str) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._thread.submit(self.write, name, text)

    def close(self) -> None:
        self._thread.shutdown()

    def _put(self, name: str, text: str, *, create_only: bool) -> None:
        with _as_os_errors():
            self._objects.put(f"{CLAIMS}/{name}", text.encode(), create_only=create_only)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise  # EntryExists among them, which is a FileExistsError
    except CacheStoreError as exc:
        raise OSError(str(exc)) from exc
