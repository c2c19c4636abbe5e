"""How each command's parser is made: help that shows defaults and examples, and the options that many share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# What takes arguments: a parser, or one headed group of it.
Arguments: TypeAlias = "argparse._ActionsContainer"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, fills the description, and keeps the examples' line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" tells nobody anything.
        if action.default in (None, False, [], ""):
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # An example must stay as it can be pasted.
        if text.startswith("example"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def add_command(commands: Commands, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    """Add and return the parser of one command; the list of commands shows the summary's first sentence."""
    lines = "\n".join(f"  {example}" for example in examples)
    return commands.add_parser(
        name,
        help=summary.partition(". ")[0].partition(":")[0].rstrip(".") + ".",
        description=summary,
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=_Help,
    )


def store_root(text: str) -> Path | str:
    """Return a store's root as it is typed: a folder, or a URL as it is."""
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text.rstrip("/") if "://" in text else Path(text)


def add_store(arguments: Arguments) -> None:
    """Add `--store` and `--json`."""
    arguments.add_argument(
        "--store", required=True, type=store_root, metavar="ROOT", help="folder or URL of the feature store"
    )
    add_json(arguments)


def add_json(arguments: Arguments) -> None:
    """Add `--json`."""
    arguments.add_argument("--json", action="store_true", help="print JSON instead of text")
