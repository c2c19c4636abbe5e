"""Objects of S3 and its likes through s3fs: one request for each question, and listings page by page."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from cache_store.errors import StoreFormatError
from cache_store.remote.objects import ObjectInfo, Objects, microseconds

S3_PROTOCOLS = frozenset(("s3", "s3a"))
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
_CONNECTIONS = 64
_TOKEN = "vlm-cache-put"  # of user metadata, by which a create-only put knows its own object


def s3_options() -> dict[str, Any]:
    """What s3fs is told beside the user's own configuration: `retries` is the only place that tries again."""
    from fsspec.config import conf

    client = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": _CONNECTIONS,
    }
    given = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**client, **given, "retries": {"total_max_attempts": 1}}}


class S3Objects(Objects):
    """As `Objects`, without the second question that a file system asks to tell a missing object from a folder."""

    def __init__(self, url: str, file_system: Any, top: str) -> None:
        super().__init__(url, file_system, top)
        file_system.retries = 1
        self._bucket, _, prefix = self._top.partition("/")
        self._top_prefix = f"{prefix}/" if prefix else ""

    def check(self) -> None:
        try:
            self._ask(lambda: self._list(MaxKeys=1))
        except FileNotFoundError as exc:
            raise StoreFormatError(self.url, f"there is no bucket {self._bucket}; create it") from exc
        except Exception as exc:
            raise StoreFormatError(self.url, str(exc)) from exc

    @property
    def service(self) -> str:
        endpoint = str(self._fs.s3.meta.endpoint_url)
        # Amazon's buckets have one name all over the world, whichever region answers.
        return "" if endpoint.endswith(".amazonaws.com") else endpoint

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        key = path[len(self._bucket) + 1 :]
        answer: dict[str, Any] = self._fs.call_s3(method, Bucket=self._bucket, Key=key, **arguments)
        return answer

    def _put(self, path: str, content: bytes, token: str | None) -> None:
        if token is None:
            self._fs.pipe_file(path, content)
        else:
            self._fs.pipe_file(path, content, mode="create", Metadata={_TOKEN: token})

    def _was_put_with(self, path: str, token: str) -> bool:
        return bool(self._call("head_object", path).get("Metadata", {}).get(_TOKEN) == token)

    def _get(self, path: str, name: str) -> tuple[bytes, ObjectInfo]:
        answer = self._call("get_object", path)
        return self._sized(answer["ContentLength"], lambda: self._body(answer)), _told(answer, name)

    def _tail(self, path: str, count: int) -> tuple[bytes, int]:
        try:
            answer = self._call("get_object", path, Range=f"bytes=-{count}")
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            # An empty object has no last bytes.
            content, info = self._get(path, "")
            return content[-count:], info.bytes
        content = self._sized(answer["ContentLength"], lambda: self._body(answer))
        return content, int(answer["ContentRange"].rpartition("/")[2])

    def _beginning(self, path: str, count: int) -> bytes:
        answer = self._call("get_object", path, Range=f"bytes=0-{count - 1}")
        return self._sized(answer["ContentLength"], lambda: self._body(answer))

    def _body(self, answer: dict[str, Any]) -> bytes:
        from fsspec.asyn import sync

        stream = answer["Body"]
        try:
            content: bytes = sync(self._fs.loop, stream.read)
            return content
        finally:
            stream.close()

    def _head(self, path: str, name: str) -> ObjectInfo:
        return _told(self._call("head_object", path), name)

    def _delete(self, path: str) -> None:
        self._call("delete_object", path)

    def _pages(self) -> Iterator[list[ObjectInfo]]:
        for page in self._pages_below(""):
            yield [info for info in page if info.name[:1] != "."]

    def _pages_in(self, folder: str) -> Iterator[list[ObjectInfo]]:
        for page in self._pages_below(f"{folder}/"):
            yield [info for info in page if "/" not in info.name[len(folder) + 1 :]]

    def _folder_pages(self, beginning: str) -> Iterator[list[str]]:
        for page in self._answers(beginning, Delimiter="/"):
            yield [item["Prefix"][len(self._top_prefix) : -1] for item in page.get("CommonPrefixes", ())]

    def _pages_below(self, beginning: str) -> Iterator[list[ObjectInfo]]:
        start = len(self._top_prefix)
        for page in self._answers(beginning):
            yield [
                ObjectInfo(item["Key"][start:], item["Size"], microseconds(item["LastModified"]), item["ETag"])
                for item in page.get("Contents", ())
            ]

    def _answers(self, beginning: str, **more: str) -> Iterator[dict[str, Any]]:
        asked = {"Prefix": self._top_prefix + beginning, **more}
        token: dict[str, str] = {}
        while True:
            page = self._ask(lambda token=token: self._list(**asked, **token))  # type: ignore[misc]
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _list(self, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._fs.call_s3("list_objects_v2", Bucket=self._bucket, **arguments)
        return answer


def _told(answer: dict[str, Any], name: str) -> ObjectInfo:
    written_us = microseconds(answer["LastModified"])
    return ObjectInfo(name, answer["ContentLength"], written_us, answer.get("ETag", ""))
