"""The arguments of the commands over a store: stats, ls, show, verify, prune, pin and clear."""

from __future__ import annotations

from pathlib import Path

from jobs.migrate_arguments import add_migrate
from jobs.pack_arguments import add_pack
from jobs.parsers import Commands, add_command, add_json, add_store, store_root
from jobs.sizes import fingerprint_prefix, parse_age, parse_size, positive_int, positive_seconds, whole_number

_PATTERNS = "a name, <name>@<recipe> or a shell pattern; may be repeated"


def add_store_commands(commands: Commands) -> None:
    """Add the parsers of all commands over a store."""
    _add_stats(commands)
    _add_ls(commands)
    _add_show(commands)
    _add_verify(commands)
    _add_prune(commands)
    _add_pin(commands)
    _add_clear(commands)
    add_migrate(commands)
    add_pack(commands)


def _add_stats(commands: Commands) -> None:
    parser = add_command(
        commands,
        "stats",
        "Show what the store holds and what was asked of it, by data set and model: features, bytes, coverage of the "
        "last build, hits and misses of all processes, evictions, age, limit and pins.",
        "vlm-cache stats --store /cache/longva",
        "vlm-cache stats --store /cache/vla --watch",
        "vlm-cache stats --store /cache/vla --html stats.html",
    )
    add_store(parser)
    parser.add_argument("--all", action="store_true", help="every data set, instead of the 20 largest")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=positive_seconds,
        metavar="SECONDS",
        help="look again every 2 (or SECONDS) seconds, with rates, until Ctrl-C",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with plots")


def _add_ls(commands: Commands) -> None:
    parser = add_command(
        commands,
        "ls",
        "List the features of the store, one line each. In a pipe the columns are separated by tabs and have no "
        "heading: name, bytes, written, last used (local time), first digits of the recipe's fingerprint or -.",
        "vlm-cache ls --store /cache/vla --dataset 'recv_all_202510*'",
        "vlm-cache ls --store /cache/longva --sort used | tail",
    )
    add_store(parser)
    parser.add_argument("--dataset", action="append", metavar="NAME", help=f"only these: {_PATTERNS}")
    parser.add_argument(
        "--sort",
        choices=("name", "bytes", "written", "used"),
        default="name",
        help="largest or most recent first; all but name need memory for the whole list",
    )


def _add_show(commands: Commands) -> None:
    parser = add_command(
        commands,
        "show",
        "Show one feature: its tensors, its recipe and its provenance. Named by its file, or by its key in a store.",
        "vlm-cache show /cache/vla/recv_all_20251027_170308_vlm30.pt",
        "vlm-cache show --store /cache/vla --dataset recv_all_20251027_170308 --vlm-idx 30",
        "vlm-cache show --store /cache/longva --dataset Video-MME --video-id fFjv93ACGo8 \\\n"
        "      --nframe 128 --model-signature 61e3f5cb",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a .pt file; with --store, relative to it")
    parser.add_argument("--store", type=store_root, metavar="ROOT", help="folder or URL of the feature store")
    parser.add_argument("--dataset", metavar="NAME", help="data set or episode")
    parser.add_argument("--vlm-idx", type=int, metavar="N", help="of a step")
    parser.add_argument("--prompt-hash", metavar="HEX8", help="of a step in a store with prompt hashes")
    parser.add_argument("--video-id", metavar="ID", help="of a video")
    parser.add_argument("--nframe", type=positive_int, metavar="N", help="of a video")
    parser.add_argument("--model-signature", metavar="HEX8", help="of a video: its tower's signature")
    add_json(parser)


def _add_verify(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        "Check every checksum of every feature. Exit status 1 if something is wrong, also after a repair.",
        "vlm-cache verify --store /cache/longva",
        "vlm-cache verify --store /cache/longva --repair",
        "vlm-cache verify --store s3://bucket/vla --sample 1000",
    )
    add_store(parser)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="move damaged files into ROOT/.vlm-cache/quarantine; nothing is deleted, the next build makes them again",
    )
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="processes at once; one per CPU, at most 16, without it"
    )
    parser.add_argument(
        "--sample",
        type=positive_int,
        metavar="N",
        help="only so many features, drawn at random; what is not drawn is listed, not read",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        metavar="N",
        help="draw the sample that an earlier run told this seed of; loose, packed or behind a URL, the same features",
    )


def _add_prune(commands: Commands) -> None:
    parser = add_command(
        commands,
        "prune",
        "Delete the features that meet every condition given. Pinned ones stay.",
        "vlm-cache prune --store /cache/vla --unused-for 30d --dry-run",
        "vlm-cache prune --store /cache/vla --dataset 'recv_all_2024*' --dataset episode_20251030_025119",
        "vlm-cache prune --store /cache/longva --down-to 100GiB",
    )
    add_store(parser)
    parser.add_argument("--dataset", action="append", metavar="NAME", help=f"only these: {_PATTERNS}")
    parser.add_argument(
        "--model",
        metavar="TEXT",
        help="only of this model: whole words of its name in `stats`, such as its tower's signature",
    )
    parser.add_argument(
        "--recipe",
        type=fingerprint_prefix,
        metavar="HEX8",
        help="only of this recipe: 8 or more digits of its fingerprint",
    )
    parser.add_argument("--older-than", type=parse_age, metavar="AGE", help="written longer ago: 30d, 12h")
    parser.add_argument("--unused-for", type=parse_age, metavar="AGE", help="neither read nor written for as long")
    parser.add_argument(
        "--down-to", type=parse_size, metavar="SIZE", help="least recently used first, until the store fits"
    )
    parser.add_argument("--pinned-too", action="store_true", help="delete pinned features as well")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, say what would be deleted")


def _add_pin(commands: Commands) -> None:
    parser = add_command(
        commands,
        "pin",
        "Keep data sets from eviction and from prune, list what is kept, or take pins back.",
        "vlm-cache pin --store /cache/longva --dataset Video-MME --for 30d --note 'evaluation of May'",
        "vlm-cache pin --store /cache/longva --list",
        "vlm-cache pin --store /cache/longva --remove Video-MME",
    )
    add_store(parser)
    parser.add_argument("--dataset", action="append", metavar="NAME", help=f"pin these: {_PATTERNS}")
    parser.add_argument("--for", dest="for_s", type=parse_age, metavar="AGE", help="30d, 12h; else until it is removed")
    parser.add_argument("--note", default="", metavar="TEXT", help="why, for those who find the pin")
    parser.add_argument("--list", action="store_true", help="list pins and the leases of reading processes")
    parser.add_argument(
        "--remove", metavar="ID_OR_DATASET", help="take back a pin by its id (4 digits or more), or all of a data set"
    )


def _add_clear(commands: Commands) -> None:
    parser = add_command(
        commands,
        "clear",
        "Delete every feature of the store, pinned ones too. Settings, statistics and what was set aside stay.",
        "vlm-cache clear --store /cache/vla --yes",
    )
    add_store(parser)
    parser.add_argument("--yes", action="store_true", help="really delete; without it nothing is deleted")
