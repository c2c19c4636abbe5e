"""Archives that a download left unpacked: named, with the command that unpacks them, because no source reads them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.sources.data_folder import DataFolder

# How each kind is recognised and unpacked where it lies, as its benchmark's harness does.
# Parts of a split archive carry the ending of the whole in their middle.
_KINDS = (
    ("*.tar.part*", "cat {archive} | tar -x"),
    ("*.zip", 'for archive in *.zip; do unzip -n "$archive"; done'),
    ("*.tar", 'for archive in *.tar; do tar -xf "$archive"; done'),
    ("*.tar.gz", 'for archive in *.tar.gz; do tar -xzf "$archive"; done'),
    ("*.tgz", 'for archive in *.tgz; do tar -xzf "$archive"; done'),
)


def is_archive(name: str) -> bool:
    """Return whether a file name is that of an archive that videos are shipped in."""
    return any(PurePosixPath(name).match(pattern) for pattern, _ in _KINDS)


def unpack_hint(folder: DataFolder) -> str | None:
    """Return one sentence that names the archives in a folder and its subfolders and unpacks them, if there are any."""
    commands = list(_commands(folder))
    if not commands:
        return None
    names = [name for names, _ in commands for name in names]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    if not isinstance(folder.root, Path):
        return f"{folder.root} holds archives ({names[0]}{more}), which are not read; unpack them there"
    return f"{names[0]}{more} not unpacked; run: {'; '.join(command for _, command in commands)}"


def _commands(folder: DataFolder) -> Iterator[tuple[list[str], str]]:
    """Yield the archives of each kind and folder, and the command for them."""
    for pattern, command in _KINDS:
        found: dict[str, list[str]] = {}
        for path in [*folder.glob(pattern), *folder.glob(f"*/{pattern}")]:
            found.setdefault(str(PurePosixPath(path).parent), []).append(path)
        for parent, names in found.items():
            place = shlex.quote(str(folder.place(parent) if parent != "." else folder.root))
            whole = PurePosixPath(names[0]).name.partition(".tar.part")[0]
            yield names, f"(cd {place} && {command.format(archive=shlex.quote(whole) + '.tar.part*')})"
