"""`vlm-cache` and `python -m jobs`: parse, call one function, turn its outcome into an exit status."""

from __future__ import annotations

import os
import sys

from jobs.arguments import make_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 some items failed, 2 wrong usage or refused)."""
    args = make_parser().parse_args(argv)
    # Imported late: `--help` and `stats` must not wait for torch, ray and transformers.
    from jobs.commands import REFUSALS, command

    try:
        return command(args)
    except REFUSALS as exc:
        print(f"vlm-cache {args.command}: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vlm-cache {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `vlm-cache ls | head` closed the pipe; Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
