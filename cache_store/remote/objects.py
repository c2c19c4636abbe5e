"""The objects below a URL, by name: whole ones put, read, listed and deleted, through fsspec and with patience.

A put makes complete bytes appear in one step: as one request where the protocol is an object store's, else under a
temporary name that is then given its own.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import fsspec

from cache_store import naming
from cache_store.errors import EntryExists, StoreFormatError, StoreReadError, StoreWriteError
from cache_store.processes import this_process
from cache_store.remote.retries import patiently

T = TypeVar("T")

# Here nobody ever sees a part of what one request puts.
_PUT_IN_ONE_STEP = frozenset(
    ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "obs", "cos", "tos", "memory")
)
_LARGE_BYTES = 8 << 20
_LARGE_AT_ONCE = 4  # each is whole in memory


class ObjectInfo(NamedTuple):
    """One object as the service tells it."""

    name: str  # relative to the root
    bytes: int
    written_us: int  # since 1970 by the service's clock, 0 unknown
    version: str  # changes when another content takes the name; "" where the service does not tell


@dataclass
class Transfers:
    """What one process asked of a service since it opened the store."""

    requests: int = 0  # that went well or were answered clearly
    failed_tries: int = 0  # and were followed by another, or by giving up
    downloads: int = 0
    downloaded_bytes: int = 0
    uploads: int = 0
    uploaded_bytes: int = 0


class Objects:
    """The objects below one URL. For the threads of one process; errors name the object's URL."""

    def __init__(self, url: str, file_system: Any, top: str) -> None:
        self.url = url
        self.transfers = Transfers()
        self._fs = file_system
        self._top = top.rstrip("/")
        self._lock = threading.Lock()
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        protocol = file_system.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        # Before 2025.2 fsspec has no `mode`, and takes it as it takes any option: a put that is to create replaces.
        knows_modes = tuple(map(int, fsspec.__version__.split(".")[:2])) >= (2025, 2)
        self._puts_in_one_step = knows_modes and bool(self._protocols & _PUT_IN_ONE_STEP)

    def check(self) -> None:
        """Make sure that there can be objects here.

        Raises:
            StoreFormatError: there cannot.
        """

    @property
    def service(self) -> str:
        """What tells apart services that know one URL; "" where the URL says it all."""
        if "memory" in self._protocols:
            owner = this_process(None)
            return f"{owner.host}:{owner.pid}:{owner.started}"
        return str(getattr(self._fs, "account_name", None) or getattr(self._fs, "endpoint_url", None) or "")

    def put(self, name: str, content: bytes, *, create_only: bool = False) -> None:
        """Publish an object, replacing the old one.

        Raises:
            EntryExists: with `create_only`, when there is one.
            StoreWriteError: the service refused or could not be reached; the object is the old or the whole new one.
        """
        token = uuid.uuid4().hex if create_only else None
        try:
            self._ask(lambda: self._put(self._path(name), content, token))
        except Exception as exc:
            if token is None or not isinstance(exc, OSError) or self.head(name) is None:
                raise StoreWriteError(self._shown(name), _as_os_error(exc)) from exc
            # Where the answer to a first try was lost, the object is our own.
            if not self._read(name, lambda: self._was_put_with(self._path(name), token)):
                raise EntryExists(self._shown(name)) from exc
        with self._lock:
            self.transfers.uploads += 1
            self.transfers.uploaded_bytes += len(content)

    def get(self, name: str, use: Callable[[bytes, ObjectInfo], T]) -> T | None:
        """What `use` makes of an object's content and its version; None where there is no object.

        Raises:
            StoreReadError: the service refused or could not be reached.
        """
        got = self._read(name, lambda: self._get(self._path(name), name))
        if got is None:
            return None
        with self._lock:
            self.transfers.downloads += 1
            self.transfers.downloaded_bytes += len(got[0])
        return use(*got)

    def tail(self, name: str, count: int) -> tuple[bytes, int] | None:
        """An object's last bytes, `count` at most, and the length of the whole; None where there is no object.

        Raises:
            StoreReadError: as `get`.
        """
        return self._read(name, lambda: self._tail(self._path(name), count))

    def beginning(self, name: str, count: int) -> bytes | None:
        """An object's first bytes, `count` at most and not none; None where there is no object.

        Raises:
            StoreReadError: as `get`.
        """
        return self._read(name, lambda: self._beginning(self._path(name), count))

    def head(self, name: str) -> ObjectInfo | None:
        """What the service tells of an object, asked for itself and never a listing; None where there is none.

        Raises:
            StoreReadError: as `get`.
        """
        return self._read(name, lambda: self._head(self._path(name), name))

    def delete(self, name: str) -> bool:
        """Delete an object; False when there was none.

        Raises:
            StoreWriteError: the service refused or could not be reached.
        """
        if self.head(name) is None:
            return False
        try:
            self._ask(lambda: self._delete(self._path(name)))
        except FileNotFoundError:
            return False
        except Exception as exc:
            raise StoreWriteError(self._shown(name), _as_os_error(exc)) from exc
        return True

    def pages(self) -> Iterator[list[ObjectInfo]]:
        """All objects outside of hidden folders, page by page as the service gives them. In no order.

        Raises:
            StoreReadError: as `get`.
        """
        yield from self._told_pages(self._pages())

    def names_in(self, folder: str) -> Iterator[str]:
        """The names of the objects in one folder, page by page; folders in it are left out.

        Raises:
            StoreReadError: as `get`.
        """
        for page in self._told_pages(self._pages_in(folder)):
            yield from (info.name for info in page)

    def folders(self, beginning: str) -> list[str]:
        """The names of the folders at the root that begin so, without what is in them.

        Raises:
            StoreReadError: as `get`.
        """
        return [name for page in self._told_pages(self._folder_pages(beginning)) for name in page]

    def _told_pages(self, pages: Iterator[list[T]]) -> Iterator[list[T]]:
        try:
            yield from pages
        except FileNotFoundError:
            # Nothing was ever put.
            return
        except (StoreReadError, GeneratorExit):
            raise
        except Exception as exc:
            raise StoreReadError(self.url, _as_os_error(exc)) from exc

    def _path(self, name: str) -> str:
        return f"{self._top}/{name}"

    def _shown(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return patiently(call, failed=self._note_failure)
        finally:
            with self._lock:
                self.transfers.requests += 1

    def _note_failure(self) -> None:
        with self._lock:
            self.transfers.failed_tries += 1

    def _read(self, name: str, call: Callable[[], T]) -> T | None:
        try:
            return self._ask(call)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except Exception as exc:
            raise StoreReadError(self._shown(name), _as_os_error(exc)) from exc

    def _sized(self, size: int, read: Callable[[], bytes]) -> bytes:
        """What `read` gives, if it is as long as the service said; few large ones at a time."""
        if size < _LARGE_BYTES:
            content = read()
        else:
            with self._large:
                content = read()
        if len(content) != size:
            raise ConnectionError(f"{len(content)} bytes came of {size}")
        return content

    # What follows is one request each, as any fsspec file system answers it.

    def _put(self, path: str, content: bytes, token: str | None) -> None:
        """Put; with a token only where there is no object yet."""
        if self._puts_in_one_step:
            self._fs.pipe_file(path, content, mode="overwrite" if token is None else "create")
            return
        if token is not None and self._fs.exists(path):
            raise FileExistsError(path)
        folder = path.rpartition("/")[0]
        self._fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/{naming.temp_name()}"
        try:
            self._fs.pipe_file(temporary, content)
            self._fs.mv(temporary, path)
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)
            raise

    def _was_put_with(self, path: str, token: str) -> bool:
        """Whether an object is known to come from the put with this token."""
        return False

    def _get(self, path: str, name: str) -> tuple[bytes, ObjectInfo]:
        info = self._head(path, name)
        return self._sized(info.bytes, lambda: bytes(self._fs.cat_file(path))), info

    def _tail(self, path: str, count: int) -> tuple[bytes, int]:
        size = self._head(path, "").bytes
        return bytes(self._fs.cat_file(path, start=max(0, size - count), end=size)), size

    def _beginning(self, path: str, count: int) -> bytes:
        return bytes(self._fs.cat_file(path, start=0, end=count))

    def _head(self, path: str, name: str) -> ObjectInfo:
        self._fs.invalidate_cache()
        return _told(self._fs.info(path), name)

    def _delete(self, path: str) -> None:
        self._fs.rm_file(path)

    def _pages(self) -> Iterator[list[ObjectInfo]]:
        folders = [""]
        for folder in folders:  # the first of them finds the others
            page, below = self._listed(folder)
            folders += below
            yield page

    def _folder_pages(self, beginning: str) -> Iterator[list[str]]:
        yield [name for name in self._listed("")[1] if name.startswith(beginning)]

    def _pages_in(self, folder: str) -> Iterator[list[ObjectInfo]]:
        yield self._listed(folder)[0]

    def _listed(self, folder: str) -> tuple[list[ObjectInfo], list[str]]:
        """The objects and the folders in a folder that are not hidden."""
        where = self._path(folder) if folder else self._top
        self._fs.invalidate_cache()
        try:
            found = self._ask(lambda: self._fs.ls(where or "/", detail=True))
        except FileNotFoundError:
            return [], []  # removed since it was named, or nothing was ever put
        page, folders = [], []
        for item in found:
            last = item["name"].rstrip("/").rpartition("/")[2]
            name = f"{folder}/{last}" if folder else last
            if item["type"] != "directory":
                page.append(_told(item, name))
            elif not last.startswith("."):
                folders.append(name)
        return page, folders


def open_objects(url: str) -> Objects:
    """The objects below a URL; opened anew in each process, because connections do not outlive a fork.

    Raises:
        StoreFormatError: no such protocol, its package is not installed, or there is no such bucket.
    """
    from fsspec.core import url_to_fs

    from cache_store.remote.s3_objects import S3_PROTOCOLS, S3Objects, s3_options

    protocol = url.partition("://")[0]
    is_s3 = protocol in S3_PROTOCOLS
    try:
        file_system, top = url_to_fs(url, use_listings_cache=False, **(s3_options() if is_s3 else {}))
    except ImportError as exc:
        extra = "pip install 'vlm-cache[remote]'" if is_s3 else "install the package that fsspec names"
        raise StoreFormatError(url, f"{exc}; {extra}") from exc
    except (ValueError, OSError) as exc:
        raise StoreFormatError(url, str(exc)) from exc
    opened = (S3Objects if is_s3 else Objects)(url, file_system, str(top))
    opened.check()
    return opened


def _told(info: dict[str, Any], name: str) -> ObjectInfo:
    if info.get("type") == "directory":
        raise FileNotFoundError(info.get("name"))
    written = next((info[key] for key in _WRITTEN if info.get(key)), 0)
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    return ObjectInfo(name, int(info["size"] or 0), microseconds(written), tag or str(microseconds(written)))


_WRITTEN = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "ino")


def microseconds(moment: Any) -> int:
    """A moment, as file systems tell it, in microseconds since 1970; 0 for what is none."""
    from datetime import datetime, timezone

    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        except ValueError:
            return 0
    if isinstance(moment, datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return int(moment * 1e6) if isinstance(moment, int | float) else 0


def _as_os_error(exc: Exception) -> OSError:
    return exc if isinstance(exc, OSError) else OSError(None, f"{type(exc).__name__}: {exc}")
