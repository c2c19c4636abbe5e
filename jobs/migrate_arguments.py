"""The arguments of `migrate`."""

from __future__ import annotations

from pathlib import Path

from jobs.parsers import Commands, add_command, add_store, store_root, whole_text


def add_migrate(commands: Commands) -> None:
    """Add the parser of `migrate`."""
    parser = add_command(
        commands,
        "migrate",
        "Copy a store into another, or bring caches of earlier scripts under today's names: each file is checked, "
        "copied and read back; nothing is computed again, overwritten or deleted. The same command again goes on where "
        "it was interrupted. With --from alone a store is copied as it is: loose, packed or behind a URL, and into "
        "either.",
        "vlm-cache migrate --from /cache/vla --store s3://bucket/vla",
        "vlm-cache migrate --from s3://bucket/vla --store /scratch/vla --dataset 'recv_all_2025*'",
        "vlm-cache migrate --store /cache/vla --from /old/cache --names names.json",
        "vlm-cache migrate --store /cache/vla --to flat --dry-run",
        "vlm-cache migrate --store /cache/longva --aliases --write-list done.txt",
    )
    add_store(parser)
    parser.add_argument(
        "--from",
        dest="source",
        type=store_root,
        metavar="ROOT",
        help="the store to copy, or the old cache, which by default is the store itself",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        metavar="NAME",
        help="of a store to copy only these: a name, <name>@<recipe> or a shell pattern; may be repeated",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="files named by hashes, and the list that names them: JSON {hash: [dataset, vlm_idx]} or "
        "{hash: '<dataset>_vlm<idx>'} either way round, or CSV/TSV with the columns hash, dataset, vlm_idx; bad lines "
        "are named, the others count",
    )
    what.add_argument(
        "--to",
        choices=("flat", "prompt-hash"),
        help="from <prompt hash>/ folders to the flat form, or from that into the folder of the instruction that each "
        "file's record tells, or that is given for those that tell none",
    )
    what.add_argument(
        "--aliases",
        action="store_true",
        help="folders that a harness named (Video-MME_128frame, or with @<recipe>) to the canonical name",
    )
    parser.add_argument("--prompt-hash", metavar="HASH", help="--to flat: only this folder; --to prompt-hash: into it")
    parser.add_argument(
        "--instruction", type=whole_text, metavar="TEXT", help="the same by the instruction that the hash is of"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="JSON recipe of files that carry none")
    parser.add_argument("--dry-run", action="store_true", help="copy nothing, say what would be copied")
    parser.add_argument("--write-list", type=Path, metavar="FILE", help="write the files there that may be deleted now")
