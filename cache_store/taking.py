"""Takes a loose file out of the store only if it still is the file that was read, whoever replaces it meanwhile.

To look and then to unlink would lose what a writer published in between. So the file is renamed into a folder where
readers look too, looked at there, and put back under its name if it is another one. Whoever dies in between leaves it
there, still readable, until `put_back_all`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cache_store import naming, shards
from cache_store.atomic import flush_folder, give_free_name, make_folder
from cache_store.errors import StoreWriteError

Identity = tuple[int, int, int]


def identity_of(status: os.stat_result) -> Identity:
    """What tells one version of a file from the next."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def take(root: Path, name: str, folder: Path, wanted: Identity) -> bool:
    """Rename a loose file to `folder / name` if it is `wanted`; False where it is gone or another one, which stays.

    Raises:
        StoreWriteError: the operating system refused; the file is under its name, or in the folder.
    """
    path, taken = f"{root}/{name}", f"{folder}/{name}"
    try:
        if identity_of(os.stat(path)) != wanted:
            return False
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            make_folder(Path(taken).parent)
            os.rename(path, taken)
        if identity_of(os.stat(taken)) == wanted:
            return True
        put_back(root, name, folder)
    except (FileNotFoundError, NotADirectoryError):
        # Deleted, evicted, or taken by another packer.
        return False
    except OSError as exc:
        raise StoreWriteError(path, exc) from exc
    return False


def put_back(root: Path, name: str, folder: Path) -> None:
    """Give a taken file its name again, unless a newer one has it.

    Raises:
        OSError: as the system says; the file stays where it is.
    """
    taken = folder / name
    with contextlib.suppress(FileExistsError):
        make_folder((root / name).parent)
        give_free_name(taken, root / name)
        flush_folder((root / name).parent)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(taken)


def taken_names(view: shards.View) -> dict[str, Path]:
    """The features that packers have taken and, if they died, not put back, with the folder of each."""
    return {
        name: folder
        for folder in reversed(view.taken)  # of two that have a name, the first is the one that readers find
        for place, _, names in os.walk(folder)
        for name in (os.path.relpath(f"{place}/{file}", folder) for file in names)
        if naming.is_feature(name)
    }


def put_back_all(root: Path) -> None:
    """Put back what packers that died had taken. Harmless for one that lives: its files are then packed and loose.

    Raises:
        StoreWriteError: the operating system refused.
    """
    for folder in shards.of(root).view().taken:
        try:
            for place, _, names in os.walk(folder, topdown=False):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        put_back(root, os.path.relpath(f"{place}/{name}", folder), folder)
                with contextlib.suppress(OSError):
                    os.rmdir(place)
        except OSError as exc:
            raise StoreWriteError(str(folder), exc) from exc
