"""`vlm-cache` and `python -m jobs`: parse, call one function, turn its outcome into an exit status."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 some items failed, 2 wrong usage or refused)."""
    named = "vlm-cache"
    try:
        # Imported here: whoever presses Ctrl-C while numpy loads is not to see where.
        from jobs.arguments import make_parser

        args = make_parser().parse_args(argv)
        named = f"vlm-cache {args.command}"
        if args.command == "stream":
            named += f" {args.stream_command}"
        # And this late: `--help` and `stats` must not wait for torch, ray and transformers.
        from jobs.commands import REFUSALS, command

        try:
            return command(args)
        except REFUSALS as exc:
            from jobs.printing import printable

            said = "\n".join(printable(line) for line in str(exc).split("\n"))
            print(f"{named}: {said}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print(f"{named}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `vlm-cache ls | head` closed the pipe; Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
