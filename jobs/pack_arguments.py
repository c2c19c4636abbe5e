"""The arguments of `pack` and `unpack`."""

from __future__ import annotations

import argparse

from jobs.parsers import Commands, add_command, add_store


def add_pack(commands: Commands) -> None:
    """Add the parsers of both commands."""
    parser = add_command(
        commands,
        "pack",
        "Move features below 1 MiB from files of their own into shards (Arrow files of 64 MiB), where every reader "
        "finds them as before. A file is removed once the shard, read back, holds its bytes; new features keep coming "
        "as files. A run that was killed goes on when it is started again. Exit status 1 if a damaged file was left.",
        "vlm-cache pack --store /cache/vla",
        "vlm-cache pack --store /cache/vla --dataset 'recv_all_2025*' --dry-run",
    )
    _add_common(parser, keep="leave the files as well, beside their packed copies")
    parser.add_argument("--unpack", action="store_true", help="the other way round, as `vlm-cache unpack`")
    parser = add_command(
        commands,
        "unpack",
        "Write packed features as the very files that they were, byte for byte, and remove emptied shards.",
        "vlm-cache unpack --store /cache/vla",
    )
    _add_common(parser, keep="leave the shards as they are, hidden by the files")


def _add_common(parser: argparse.ArgumentParser, *, keep: str) -> None:
    add_store(parser)
    help_text = "only these: a name, <name>@<recipe> or a shell pattern; may be repeated"
    parser.add_argument("--dataset", action="append", metavar="NAME", help=help_text)
    parser.add_argument("--keep", action="store_true", help=keep)
    parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
