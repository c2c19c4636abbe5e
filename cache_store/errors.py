"""Everything the store raises on purpose.

    CacheStoreError
    ├── InvalidKey          (also a ValueError)  the key cannot be a file name
    ├── RecipeMismatch                           the file was made another way than this run asks for
    ├── InexactFeature                           it is kept as int8, and exact values were asked for
    ├── StoreFull                                the size limit leaves no room
    ├── EntryExists         (also a FileExistsError)  create-only, and the name is taken
    ├── StoreWriteError                          the disk failed while writing: a bad disk stops the run
    ├── StoreReadError                           the disk or its permissions failed while reading
    ├── StoreFormatError                         the folder is no store, or of a newer format
    ├── LocalOnly                                a remote root cannot do what was asked
    └── DamagedFeature                           a file whose content cannot be trusted

All keep their data as fields and survive pickling, because they travel between Ray workers.
"""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cache_store.int8 import Loss


class CacheStoreError(Exception):
    """Root of the tree. The message is built from the fields, so that a pickled copy says the same.

    `published` are the features of a failed `put_many` that it has published, by the paths that it would have returned.
    """

    published: Sequence[Path] = ()

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args` alone; the fields have to travel in the state.
        return (_rebuild, (type(self), self.message), dict(self.__dict__))

    def said_of(self, place: str, *, copied_to: str) -> CacheStoreError:
        """The same error about what a path in `copied_to` is a copy of."""
        fields = {name: _moved(value, copied_to, place) for name, value in vars(self).items()}
        error = _rebuild(type(self), fields["message"])
        error.__dict__.update(fields)
        return error


def _rebuild(kind: type[CacheStoreError], message: str) -> CacheStoreError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def _moved(value: Any, old: str, new: str) -> Any:
    return value.replace(old, new) if isinstance(value, str) else value


def _advice(path: str, for_a_file: str, number: int | None = None) -> str:
    if number == errno.EMFILE:
        return f"raise the limit of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} open files (ulimit -n)"
    return "check the service, the network and the credentials" if "://" in path else for_a_file


class InvalidKey(CacheStoreError, ValueError):
    """A key that cannot become a safe file name. `field` and `value` say which part is wrong."""

    field: str
    value: object

    def __init__(self, problem: str, *, field: str, value: object) -> None:
        super().__init__(f"{field} {value!r} {problem}", field=field, value=value)


class RecipeMismatch(CacheStoreError):
    """The stored feature was made with another recipe.

    `path` is the file, `found` and `wanted` are fingerprints (64 hex digits), `differences` says in words
    where the two recipes part.
    """

    path: str
    found: str
    wanted: str
    differences: list[str]

    def __init__(self, *, path: str, found: str, wanted: str, differences: list[str], advice: str) -> None:
        listed = "; ".join(differences) or "no difference in words"
        super().__init__(
            f"{path} was made with recipe {found[:8]}, this run uses {wanted[:8]} ({listed}); {advice}",
            path=path,
            found=found,
            wanted=wanted,
            differences=differences,
        )


class InexactFeature(CacheStoreError):
    """The feature was kept as int8, and the reader asks for the tower's own values.

    `loss` is what that cost it, measured when it was put; None where the file does not tell.
    """

    path: str
    loss: Loss | None

    def __init__(self, path: str, loss: Loss | None, *, advice: str | None = None) -> None:
        cost = (
            f" (cosine {loss.worst_cosine:.6f} in its worst token, errors up to {loss.max_error:.3g})" if loss else ""
        )
        advice = advice or (
            "read it without exact=True or with the recipe that it was built with, or build the exact ones beside it, "
            "without --store-dtype int8"
        )
        super().__init__(
            f"{path} is kept as int8{cost}, and exact values are asked for; {advice}",
            path=path,
            loss=loss,
        )


class StoreFull(CacheStoreError):
    """The limit leaves no room, and nothing may be evicted. Bytes are `st_size` of published files."""

    limit_bytes: int
    needed_bytes: int

    def __init__(self, reason: str, *, limit_bytes: int, needed_bytes: int) -> None:
        super().__init__(
            f"no room for {needed_bytes} bytes under the limit of {limit_bytes} bytes: {reason}; "
            "raise the limit, prune, or build fewer entries per run",
            limit_bytes=limit_bytes,
            needed_bytes=needed_bytes,
        )


class EntryExists(CacheStoreError, FileExistsError):
    """A create-only put found a file of this name; it was not touched."""

    path: str

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is there already; put without create_only replaces it", path=path)


class StoreWriteError(CacheStoreError):
    """The system refused a write. `errno` and `reason` are the system's, `path` is the file meant."""

    path: str
    errno: int | None
    reason: str

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"cannot write {path}: {cause.strerror or cause}; "
            + _advice(path, "check the disk's space, quota and permissions", cause.errno),
            path=path,
            errno=cause.errno,
            reason=cause.strerror or str(cause),
        )


class StoreReadError(CacheStoreError):
    """The operating system refused a read of an existing file; a miss would hide a failing disk."""

    path: str
    errno: int | None
    reason: str

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"cannot read {path}: {cause.strerror or cause}; "
            + _advice(path, "check the disk and the file's permissions", cause.errno),
            path=path,
            errno=cause.errno,
            reason=cause.strerror or str(cause),
        )


class StoreFormatError(CacheStoreError):
    """`path` cannot be opened as a store, for the stated `reason`."""

    path: str
    reason: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be opened as a store: {reason}", path=path, reason=reason)


class LocalOnly(CacheStoreError):
    """A store behind a URL was asked for what only one in a folder of a machine can do: `what`."""

    location: str
    what: str

    def __init__(self, location: str, what: str, advice: str) -> None:
        super().__init__(f"{location} is a remote root, which has no {what}; {advice}", location=location, what=what)


class DamagedFeature(CacheStoreError):
    """The file at `path` is truncated, altered or no feature at all; `reason` says what was found."""

    path: str
    reason: str

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}; delete it and build it again", path=path, reason=reason)
